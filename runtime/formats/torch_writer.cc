#include "runtime/formats/torch_writer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/formats/crc32.h"
#include "runtime/formats/strict_json.h"
#include "runtime/formats/tensor_entry.h"
#include "runtime/formats/torch_types.h"

namespace sherd::formats {
namespace {

constexpr absl::string_view kRoot = "archive";
constexpr absl::string_view kByteOrder = "little";
constexpr absl::string_view kVersion = "3\n";

}  // namespace

void TorchTree::Tensor(StoredType dtype, const std::vector<int64_t>& shape) {
  const absl::string_view storage = TorchStorageClass(dtype);
  const absl::StatusOr<uint64_t> bytes = BytesOf(dtype, shape);
  if (status_.ok()) status_ = bytes.status();
  if (status_.ok() && storage.empty()) {
    status_ = absl::InvalidArgumentError(
        absl::StrCat("type ", Name(dtype), " has no storage class in PyTorch: use another format"));
  }
  if (!status_.ok()) return;
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    // As torch does, so that a tensor without elements has strides at all.
    if (*bytes > 0) stride *= shape[i];
  }
  const auto tuple = [&](const std::vector<int64_t>& numbers) {
    if (numbers.empty()) return pickle_.EmptyTuple();
    pickle_.BeginTuple();
    for (const int64_t n : numbers) pickle_.Int(n);
    pickle_.EndTuple();
  };
  pickle_.Global("torch._utils", "_rebuild_tensor_v2");
  pickle_.BeginTuple();
  pickle_.BeginTuple();
  pickle_.String("storage");
  pickle_.Global("torch", storage);
  pickle_.String(absl::StrCat(storages_.size()));
  pickle_.String("cpu");
  pickle_.Int(static_cast<int64_t>(*bytes / SizeOf(dtype)));
  pickle_.EndTuple();
  pickle_.Persistent();
  pickle_.Int(0);
  tuple(shape);
  tuple(strides);
  pickle_.Bool(false);  // no gradient wanted
  pickle_.Global("collections", "OrderedDict");
  pickle_.EmptyTuple();
  pickle_.Call();  // no hooks
  pickle_.EndTuple();
  pickle_.Call();
  storages_.push_back(*bytes);
}

absl::StatusOr<TorchPlan> TorchTree::LayOut() && {
  if (!status_.ok()) return status_;
  std::string pickle = std::move(pickle_).Finish();
  std::vector<ZipLayout::Item> items = {{absl::StrCat(kRoot, "/data.pkl"), pickle.size()},
                                        {absl::StrCat(kRoot, "/byteorder"), kByteOrder.size()}};
  const size_t first = items.size();
  uint64_t bytes = 0;
  for (size_t i = 0; i < storages_.size(); ++i) {
    items.push_back({absl::StrCat(kRoot, "/data/", i), storages_[i]});
    bytes += storages_[i];
  }
  items.push_back({absl::StrCat(kRoot, "/version"), kVersion.size()});
  absl::StatusOr<ZipLayout> layout = ZipLayout::Make(std::move(items));
  if (!layout.ok()) return layout.status();
  return TorchPlan{std::move(pickle), *std::move(layout), first, storages_.size(), bytes};
}

TorchWriter::TorchWriter(std::unique_ptr<AtomicFile> file, TorchPlan plan)
    : file_(std::move(file)),
      plan_(std::move(plan)),
      crcs_(plan_.layout.entries().size(), 0),
      entry_(plan_.first_storage) {
  SkipFull();
}

absl::StatusOr<std::unique_ptr<TorchWriter>> TorchWriter::Create(const std::string& path, TorchPlan plan) {
  absl::StatusOr<std::unique_ptr<AtomicFile>> file = AtomicFile::Create(path, plan.layout.file_bytes(), {});
  if (!file.ok()) return file.status();
  return std::unique_ptr<TorchWriter>(new TorchWriter(*std::move(file), std::move(plan)));
}

void TorchWriter::SkipFull() {
  const std::vector<ZipLayout::Entry>& entries = plan_.layout.entries();
  while (entry_ < plan_.first_storage + plan_.storages && in_entry_ == entries[entry_].bytes) {
    ++entry_;
    in_entry_ = 0;
  }
}

absl::Status TorchWriter::WriteData(uint64_t offset, absl::string_view bytes) {
  if (offset != done_) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_->path(), ": bytes at ", offset, " where those at ", done_, " come next"));
  }
  if (bytes.size() > plan_.data_bytes - done_) {
    return absl::OutOfRangeError(absl::StrCat(file_->path(), ": ", bytes.size(), " bytes at ", offset,
                                              " pass the data's end at ", plan_.data_bytes));
  }
  while (!bytes.empty()) {
    const ZipLayout::Entry& entry = plan_.layout.entries()[entry_];
    const absl::string_view part = bytes.substr(0, std::min<uint64_t>(bytes.size(), entry.bytes - in_entry_));
    if (absl::Status s = file_->WriteAt(entry.data_begin + in_entry_, part); !s.ok()) return s;
    crcs_[entry_] = ExtendCrc32(crcs_[entry_], part);
    in_entry_ += part.size();
    done_ += part.size();
    bytes.remove_prefix(part.size());
    SkipFull();
  }
  return absl::OkStatus();
}

absl::Status TorchWriter::WriteSmall(size_t entry, absl::string_view bytes) {
  crcs_[entry] = ExtendCrc32(0, bytes);
  return file_->WriteAt(plan_.layout.entries()[entry].data_begin, bytes);
}

absl::Status TorchWriter::Commit() {
  if (done_ != plan_.data_bytes) {
    return absl::FailedPreconditionError(absl::StrCat("cannot commit ", file_->path(), ": ", done_, " of ",
                                                      plan_.data_bytes, " bytes were written"));
  }
  if (absl::Status s = WriteSmall(0, plan_.pickle); !s.ok()) return s;
  if (absl::Status s = WriteSmall(1, kByteOrder); !s.ok()) return s;
  if (absl::Status s = WriteSmall(crcs_.size() - 1, kVersion); !s.ok()) return s;
  for (size_t i = 0; i < crcs_.size(); ++i) {
    absl::Status s =
        file_->WriteAt(plan_.layout.entries()[i].header_begin, plan_.layout.LocalHeader(i, crcs_[i]));
    if (!s.ok()) return s;
  }
  absl::Status s = file_->WriteAt(plan_.layout.directory_begin(), plan_.layout.Directory(crcs_));
  return s.ok() ? file_->Commit() : s;
}

}  // namespace sherd::formats
