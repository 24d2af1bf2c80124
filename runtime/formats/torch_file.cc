#include "runtime/formats/torch_file.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/formats/atomic_file.h"
#include "runtime/formats/crc32.h"
#include "runtime/formats/strict_json.h"
#include "runtime/formats/tensor_entry.h"
#include "runtime/formats/torch_types.h"
#include "runtime/unique_fd.h"

namespace sherd::formats {

using Kind = PickleDocument::Kind;
using Node = PickleDocument::Node;
using Id = PickleDocument::Id;

namespace {

constexpr absl::string_view kPickle = "/data.pkl";
constexpr absl::string_view kZipBegin = "PK\x03\x04";
// PyTorch before 1.6, and DeepSpeed's own engine: a pickle of the magic number 0x1950a86a20f9469cfc6c.
constexpr absl::string_view kOldBegin = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
constexpr int kMostWrappers = 4;
constexpr size_t kMostDimensions = 64;

bool IsContiguous(const TorchTensor& t) {
  int64_t expected = 1;
  for (size_t i = t.shape.size(); i-- > 0;) {
    if (t.shape[i] != 1 && t.strides[i] != expected) return false;
    expected *= t.shape[i];
  }
  return true;
}

bool SameElements(const TorchTensor& a, const TorchTensor& b) {
  return a.storage == b.storage && a.dtype == b.dtype && a.offset == b.offset && a.shape == b.shape &&
         a.strides == b.strides;
}

}  // namespace

absl::Status TorchFile::Bad(absl::string_view why) const {
  return absl::InvalidArgumentError(absl::StrCat(path(), ": ", why));
}

bool TorchFile::Begins(absl::string_view first_bytes) {
  return absl::StartsWith(first_bytes, kZipBegin) || absl::StartsWith(first_bytes, kOldBegin);
}

absl::StatusOr<std::unique_ptr<TorchFile>> TorchFile::Open(const std::string& path,
                                                           const PickleDocument::Options& options) {
  uint64_t bytes = 0;
  absl::StatusOr<runtime::UniqueFd> fd = OpenRegular(path, &bytes);
  if (!fd.ok()) return fd.status();
  std::string first(std::min<uint64_t>(bytes, kOldBegin.size()), '\0');
  if (absl::Status s = ReadExactly(fd->get(), path, 0, absl::MakeSpan(&first[0], first.size())); !s.ok()) {
    return s;
  }
  if (first == kOldBegin) {
    return absl::InvalidArgumentError(absl::StrCat(
        path,
        ": written in torch.save's form before PyTorch 1.6, which is no zip: torch.load it and torch.save "
        "it again"));
  }
  absl::StatusOr<std::unique_ptr<ZipReader>> zip = ZipReader::Open(path);
  if (!zip.ok()) return zip.status();
  std::unique_ptr<TorchFile> file(new TorchFile(*std::move(zip)));
  if (absl::Status status = file->Load(options); !status.ok()) return status;
  return file;
}

absl::Status TorchFile::Load(const PickleDocument::Options& options) {
  const ZipReader::Entry* pickle = nullptr;
  for (const ZipReader::Entry& entry : zip_->entries()) {
    if (!absl::EndsWith(entry.name, kPickle) || std::count(entry.name.begin(), entry.name.end(), '/') != 1)
      continue;
    if (pickle != nullptr) return Bad("a zip with two data.pkl");
    pickle = &entry;
  }
  if (pickle == nullptr) return Bad("a zip without data.pkl: no file of torch.save");
  root_ = pickle->name.substr(0, pickle->name.size() - kPickle.size());
  if (const ZipReader::Entry* order = zip_->Find(absl::StrCat(root_, "/byteorder"))) {
    absl::StatusOr<std::string> text = zip_->ReadEntry(*order, 64);
    if (!text.ok()) return text.status();
    if (*text != "little") return Bad(absl::StrCat("byte order ", Quoted(*text), "; only little is read"));
  }
  absl::StatusOr<std::string> bytes = zip_->ReadEntry(*pickle, options.max_bytes);
  if (!bytes.ok()) return bytes.status();
  absl::StatusOr<std::unique_ptr<PickleDocument>> document =
      PickleDocument::Parse(*std::move(bytes), TorchGlobals(), options);
  if (!document.ok()) {
    return absl::Status(document.status().code(), absl::StrCat(path(), ": ", document.status().message()));
  }
  document_ = *std::move(document);
  return absl::OkStatus();
}

// The call that makes a tensor, below the parameters that may hold it; nullptr if there is none.
const Node* TorchFile::Unwrap(const Node* node) const {
  for (int i = 0; i < kMostWrappers; ++i) {
    if (document_->ArgumentsOf(*node, "torch._utils._rebuild_tensor_v2") != nullptr ||
        document_->ArgumentsOf(*node, "torch._utils._rebuild_tensor_v3") != nullptr) {
      return node;
    }
    const std::vector<Id>* inner = document_->ArgumentsOf(*node, "torch._utils._rebuild_parameter");
    if (inner == nullptr) {
      inner = document_->ArgumentsOf(*node, "torch._utils._rebuild_parameter_with_state");
    }
    if (inner == nullptr || inner->empty()) return nullptr;
    node = &document_->at(inner->front());
  }
  return nullptr;
}

bool TorchFile::IsTensor(const Node& node) const { return Unwrap(&node) != nullptr; }

absl::StatusOr<std::vector<int64_t>> TorchFile::Dimensions(const Node& node) const {
  const Node* tuple = &node;
  const std::vector<Id>* size = document_->ArgumentsOf(node, "torch.Size");
  if (size != nullptr && size->size() == 1) tuple = &document_->at(size->front());
  if (tuple->kind != Kind::kTuple || tuple->items.size() > kMostDimensions) {
    return Bad(absl::StrCat("a tensor's shape or strides are ", document_->Describe(*tuple)));
  }
  std::vector<int64_t> out;
  for (const Id id : tuple->items) {
    const Node& item = document_->at(id);
    if (item.kind != Kind::kInt || item.integer < 0) {
      return Bad("a tensor's shape or strides hold something else than natural numbers");
    }
    out.push_back(item.integer);
  }
  return out;
}

// Finds ('storage', class, key, location, elements) and the bytes it means.
absl::Status TorchFile::FindStorage(const Node& node, const Node* dtype, TorchTensor* out) const {
  const Node* id = node.kind == Kind::kPersistent ? &document_->at(node.items[0]) : nullptr;
  if (id == nullptr || id->kind != Kind::kTuple || id->items.size() != 5) {
    return Bad(absl::StrCat("a tensor's storage is ", document_->Describe(node)));
  }
  const auto part = [&](size_t i) -> const Node& { return document_->at(id->items[i]); };
  if (part(0).kind != Kind::kString || part(0).text != "storage" || part(1).kind != Kind::kGlobal ||
      part(2).kind != Kind::kString || part(4).kind != Kind::kInt || part(4).integer < 0) {
    return Bad("the name of a tensor's storage is malformed");
  }
  std::optional<StoredType> type;
  uint64_t unit = 1;
  if (dtype != nullptr) {
    if (part(1).text != kTorchUntypedStorages[0] && part(1).text != kTorchUntypedStorages[1]) {
      return Bad(absl::StrCat("a tensor of a dtype over ", Quoted(part(1).text)));
    }
    if (dtype->kind == Kind::kGlobal) type = TypeOfTorchDtype(dtype->text);
  } else {
    type = TypeOfTorchStorage(part(1).text);
    if (type.has_value()) unit = SizeOf(*type);
  }
  if (!type.has_value()) {
    return Bad(
        absl::StrCat("a tensor of unknown type ", Quoted(dtype != nullptr ? dtype->text : part(1).text)));
  }
  out->dtype = *type;
  out->storage = zip_->Find(absl::StrCat(root_, "/data/", part(2).text));
  if (out->storage == nullptr) return Bad(absl::StrCat("storage ", Quoted(part(2).text), " is missing"));
  if (out->storage->bytes % unit != 0 ||
      out->storage->bytes / unit != static_cast<uint64_t>(part(4).integer)) {
    return Bad(absl::StrCat("storage ", Quoted(part(2).text), " states ", part(4).integer, " elements of ",
                            unit, " bytes and has ", out->storage->bytes, " bytes"));
  }
  return absl::OkStatus();
}

absl::Status TorchFile::CheckElements(TorchTensor* t) const {
  const absl::StatusOr<uint64_t> bytes = BytesOf(t->dtype, t->shape);
  if (!bytes.ok()) return Bad(bytes.status().message());
  t->bytes = *bytes;
  if (t->bytes == 0) return absl::OkStatus();
  t->contiguous = IsContiguous(*t);
  uint64_t last = t->offset;
  for (size_t i = 0; i < t->shape.size(); ++i) {
    uint64_t span = 0;
    if (__builtin_mul_overflow(static_cast<uint64_t>(t->shape[i] - 1), static_cast<uint64_t>(t->strides[i]),
                               &span) ||
        __builtin_add_overflow(last, span, &last)) {
      return Bad("a tensor's strides overflow");
    }
  }
  if (last >= t->storage->bytes / SizeOf(t->dtype)) {
    return Bad(absl::StrCat("a tensor of shape ", ShapeText(t->shape), " passes the end of its storage ",
                            Quoted(t->storage->name)));
  }
  return absl::OkStatus();
}

absl::StatusOr<TorchTensor> TorchFile::Tensor(const Node& node) const {
  const Node* call = Unwrap(&node);
  if (call == nullptr) return Bad(absl::StrCat(document_->Describe(node), " where a tensor is due"));
  const std::vector<Id>& arguments = document_->at(call->items[1]).items;
  const bool by_dtype = document_->ArgumentsOf(*call, "torch._utils._rebuild_tensor_v3") != nullptr;
  if (arguments.size() < (by_dtype ? 7 : 4)) return Bad("a tensor of too few parts");
  TorchTensor tensor;
  const Node* dtype = by_dtype ? &document_->at(arguments[6]) : nullptr;
  if (absl::Status s = FindStorage(document_->at(arguments[0]), dtype, &tensor); !s.ok()) return s;
  const Node& offset = document_->at(arguments[1]);
  if (offset.kind != Kind::kInt || offset.integer < 0) return Bad("a tensor's offset is malformed");
  tensor.offset = offset.integer;
  absl::StatusOr<std::vector<int64_t>> shape = Dimensions(document_->at(arguments[2]));
  if (!shape.ok()) return shape.status();
  absl::StatusOr<std::vector<int64_t>> strides = Dimensions(document_->at(arguments[3]));
  if (!strides.ok()) return strides.status();
  if (shape->size() != strides->size()) return Bad("a tensor has another number of strides than dimensions");
  tensor.shape = *std::move(shape);
  tensor.strides = *std::move(strides);
  if (absl::Status s = CheckElements(&tensor); !s.ok()) return s;
  return tensor;
}

absl::Status TorchFile::CheckSum(const ZipReader::Entry& storage, uint64_t offset,
                                 absl::string_view bytes) const {
  runtime::MutexLock lock(mutex_);
  Progress& progress = progress_[&storage];
  if (offset == 0) progress = {};
  if (offset != progress.next) return absl::OkStatus();
  progress.crc = ExtendCrc32(progress.crc, bytes);
  progress.next += bytes.size();
  if (progress.next < storage.bytes) return absl::OkStatus();
  const uint32_t crc = progress.crc;
  progress_.erase(&storage);
  if (crc == storage.crc) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      path(), ": the bytes of ", Quoted(storage.name),
      " do not match their checksum: the file is damaged, or was saved with set_crc32_options(False)"));
}

// All elements in row-major order.
absl::StatusOr<std::string> TorchFile::PutInOrder(const TorchTensor& t) const {
  const uint64_t unit = SizeOf(t.dtype);
  uint64_t span = 1;
  for (size_t i = 0; i < t.shape.size(); ++i) span += (t.shape[i] - 1) * t.strides[i];
  if (t.bytes > kMaxScattered || span > kMaxScattered / unit) {
    return absl::ResourceExhaustedError(absl::StrCat(
        path(), ": a tensor of shape ", ShapeText(t.shape),
        " does not lie in a row and is too large to be put in order: save it with .contiguous()"));
  }
  std::string from(span * unit, '\0');
  absl::Status read = zip_->Read(*t.storage, t.offset * unit, absl::MakeSpan(&from[0], from.size()));
  if (!read.ok()) return read;
  std::string to(t.bytes, '\0');
  std::vector<int64_t> index(t.shape.size(), 0);
  uint64_t at = 0;  // of the element in `from`
  for (uint64_t out = 0; out < t.bytes; out += unit) {
    std::memcpy(&to[out], &from[at * unit], unit);
    for (size_t d = t.shape.size(); d-- > 0;) {
      at += t.strides[d];
      if (++index[d] < t.shape[d]) break;
      at -= t.shape[d] * t.strides[d];
      index[d] = 0;
    }
  }
  return to;
}

absl::Status TorchFile::Read(const TorchTensor& tensor, uint64_t offset, absl::Span<char> out) const {
  if (offset > tensor.bytes || out.size() > tensor.bytes - offset) {
    return absl::OutOfRangeError(absl::StrCat(path(), ": ", out.size(), " bytes at ", offset,
                                              " pass the end of a tensor of ", tensor.bytes, " bytes"));
  }
  if (out.empty()) return absl::OkStatus();
  if (tensor.contiguous) {
    const uint64_t at = tensor.offset * SizeOf(tensor.dtype) + offset;
    if (absl::Status s = zip_->Read(*tensor.storage, at, out); !s.ok()) return s;
    return CheckSum(*tensor.storage, at, absl::string_view(out.data(), out.size()));
  }
  std::shared_ptr<const Ordered> ordered;
  {
    runtime::MutexLock lock(mutex_);
    ordered = ordered_;
  }
  if (ordered == nullptr || !SameElements(ordered->tensor, tensor)) {
    absl::StatusOr<std::string> bytes = PutInOrder(tensor);
    if (!bytes.ok()) return bytes.status();
    ordered = std::make_shared<Ordered>(Ordered{tensor, *std::move(bytes)});
    runtime::MutexLock lock(mutex_);
    ordered_ = ordered;
  }
  std::memcpy(out.data(), ordered->bytes.data() + offset, out.size());
  return absl::OkStatus();
}

}  // namespace sherd::formats
