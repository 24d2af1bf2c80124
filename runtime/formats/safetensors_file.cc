#include "runtime/formats/safetensors_file.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/formats/strict_json.h"

namespace sherd::formats {
namespace {

absl::Status InFile(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

absl::flat_hash_map<absl::string_view, const TensorEntry*> IndexByName(
    const std::vector<TensorEntry>& tensors) {
  absl::flat_hash_map<absl::string_view, const TensorEntry*> index;
  index.reserve(tensors.size());
  for (const TensorEntry& tensor : tensors) index.emplace(tensor.name, &tensor);
  return index;
}

absl::Status NoTensor(absl::string_view name, const std::string& path) {
  return absl::NotFoundError(absl::StrCat(path, ": no tensor ", Quoted(name)));
}

// Joins [begin, end) to disjoint ranges that do not touch each other.
void AddRange(uint64_t begin, uint64_t end, std::map<uint64_t, uint64_t>* ranges) {
  if (begin == end) return;
  auto it = ranges->upper_bound(begin);
  if (it != ranges->begin() && std::prev(it)->second >= begin) {
    --it;
    begin = it->first;
  }
  while (it != ranges->end() && it->first <= end) {
    end = std::max(end, it->second);
    it = ranges->erase(it);
  }
  ranges->emplace(begin, end);
}

}  // namespace

SafetensorsReader::SafetensorsReader(std::string path, runtime::UniqueFd fd)
    : path_(std::move(path)), fd_(std::move(fd)) {}

absl::StatusOr<std::unique_ptr<SafetensorsReader>> SafetensorsReader::Open(const std::string& path) {
  uint64_t file_bytes = 0;
  absl::StatusOr<runtime::UniqueFd> opened = OpenRegular(path, &file_bytes);
  if (!opened.ok()) return opened.status();
  std::unique_ptr<SafetensorsReader> reader(new SafetensorsReader(path, *std::move(opened)));
  const int fd = reader->fd_.get();

  std::string prefix(std::min(kPrefixBytes, file_bytes), '\0');
  if (absl::Status s = ReadExactly(fd, path, 0, absl::MakeSpan(&prefix[0], prefix.size())); !s.ok()) return s;
  absl::StatusOr<uint64_t> size = ParseHeaderSize(prefix, file_bytes);
  if (!size.ok()) return InFile(path, size.status());
  std::string json(*size, '\0');
  if (absl::Status s = ReadExactly(fd, path, kPrefixBytes, absl::MakeSpan(&json[0], json.size())); !s.ok()) {
    return s;
  }
  absl::StatusOr<Header> header = Parse(json, file_bytes);
  if (!header.ok()) return InFile(path, header.status());
  reader->header_ = *std::move(header);
  std::string none;
  reader->IndexNames(&none);  // Parse has refused names that come twice
  return reader;
}

absl::Status SafetensorsReader::ReadWithin(const TensorEntry& tensor, uint64_t offset,
                                           absl::Span<char> out) const {
  return ReadExactly(fd_.get(), path_, header_.data_begin + tensor.begin + offset, out);
}

SafetensorsWriter::SafetensorsWriter(std::unique_ptr<AtomicFile> file, FilePlan plan)
    : file_(std::move(file)), plan_(std::move(plan)), by_name_(IndexByName(plan_.header.tensors)) {}

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(const std::string& path,
                                                                             FilePlan plan,
                                                                             AtomicFile::Options options) {
  absl::StatusOr<std::unique_ptr<AtomicFile>> file =
      AtomicFile::Create(path, plan.header.file_bytes(), options);
  if (!file.ok()) return file.status();
  std::unique_ptr<SafetensorsWriter> writer(new SafetensorsWriter(*std::move(file), std::move(plan)));
  const std::string& head = writer->plan_.header_bytes;
  if (writer->file_->resumed()) {
    std::string found(head.size(), '\0');
    absl::Status status = writer->file_->ReadAt(0, absl::MakeSpan(&found[0], found.size()));
    if (!status.ok()) return status;
    writer->resumed_ = found == head;
  }
  // With another header the old data goes stale by itself: nothing of it counts as present.
  if (!writer->resumed_) {
    if (absl::Status status = writer->file_->WriteAt(0, head); !status.ok()) return status;
  }
  return writer;
}

absl::Status SafetensorsWriter::CheckData(uint64_t offset, uint64_t bytes) const {
  const uint64_t all = plan_.header.data_bytes;
  if (offset <= all && bytes <= all - offset) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat(file_->path(), ": ", bytes, " bytes at data offset ", offset,
                                            " pass the data's end at ", all));
}

absl::Status SafetensorsWriter::WriteAt(absl::string_view name, uint64_t offset, absl::string_view bytes) {
  const auto it = by_name_.find(name);
  if (it == by_name_.end()) return NoTensor(name, file_->path());
  if (absl::Status s = CheckWithin(*it->second, offset, bytes.size(), file_->path()); !s.ok()) return s;
  return WriteData(it->second->begin + offset, bytes);
}

absl::Status SafetensorsWriter::WriteData(uint64_t offset, absl::string_view bytes) {
  if (absl::Status s = CheckData(offset, bytes.size()); !s.ok()) return s;
  if (absl::Status s = file_->WriteAt(plan_.header.data_begin + offset, bytes); !s.ok()) return s;
  runtime::MutexLock lock(mutex_);
  AddRange(offset, offset + bytes.size(), &present_);
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::ReadBack(uint64_t offset, absl::Span<char> out) const {
  if (absl::Status s = CheckData(offset, out.size()); !s.ok()) return s;
  return file_->ReadAt(plan_.header.data_begin + offset, out);
}

absl::Status SafetensorsWriter::MarkPresent(uint64_t offset, uint64_t bytes) {
  if (absl::Status s = CheckData(offset, bytes); !s.ok()) return s;
  runtime::MutexLock lock(mutex_);
  AddRange(offset, offset + bytes, &present_);
  return absl::OkStatus();
}

uint64_t SafetensorsWriter::present_bytes() const {
  runtime::MutexLock lock(mutex_);
  uint64_t sum = 0;
  for (const auto& [begin, end] : present_) sum += end - begin;
  return sum;
}

absl::Status SafetensorsWriter::Commit() {
  uint64_t gap = 0;  // the first byte nobody wrote
  {
    runtime::MutexLock lock(mutex_);
    if (!present_.empty() && present_.begin()->first == 0) gap = present_.begin()->second;
  }
  if (gap < plan_.header.data_bytes) {
    for (const TensorEntry& tensor : plan_.header.tensors) {
      if (gap >= tensor.end) continue;
      return absl::FailedPreconditionError(absl::StrCat("cannot commit ", file_->path(), ": tensor ",
                                                        Quoted(tensor.name), " was not written from byte ",
                                                        gap - tensor.begin, " on"));
    }
  }
  return file_->Commit();
}

}  // namespace sherd::formats
