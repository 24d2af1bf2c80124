#include "runtime/formats/safetensors_header.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/formats/strict_json.h"

namespace sherd::formats {
namespace {

constexpr absl::string_view kMetadataKey = "__metadata__";
constexpr uint64_t kMaxBytes = std::numeric_limits<int64_t>::max();

template <typename... Args>
absl::Status Malformed(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

// Builds a Header from the events of its JSON. Knows one tensor at a time; what needs all of them (holes,
// overlaps) is checked afterwards.
class HeaderVisitor : public JsonVisitor {
 public:
  Header&& Take() && { return std::move(header_); }

  absl::Status StartObject() override {
    if (Skipping()) return Deeper();
    switch (where_) {
      case Where::kOutside:
        where_ = Where::kRoot;
        return absl::OkStatus();
      case Where::kRoot:
        if (key_ == kMetadataKey) {
          where_ = Where::kMetadata;
        } else {
          where_ = Where::kTensor;
          tensor_ = TensorEntry{key_};
          offsets_.clear();
          has_dtype_ = has_shape_ = has_offsets_ = false;
        }
        return absl::OkStatus();
      default:
        return Unexpected("an object");
    }
  }

  absl::Status EndObject() override {
    if (depth_in_unknown_ > 0) return Shallower();
    if (where_ == Where::kTensor) {
      if (absl::Status status = FinishTensor(); !status.ok()) return status;
    }
    where_ = where_ == Where::kRoot ? Where::kOutside : Where::kRoot;
    return absl::OkStatus();
  }

  absl::Status StartArray() override {
    if (Skipping()) return Deeper();
    if (where_ == Where::kTensor && key_ == "shape") {
      where_ = Where::kShape;
      has_shape_ = true;
      return absl::OkStatus();
    }
    if (where_ == Where::kTensor && key_ == "data_offsets") {
      where_ = Where::kOffsets;
      has_offsets_ = true;
      return absl::OkStatus();
    }
    return Unexpected("an array");
  }

  absl::Status EndArray() override {
    if (depth_in_unknown_ > 0) return Shallower();
    where_ = Where::kTensor;
    return absl::OkStatus();
  }

  absl::Status Key(absl::string_view key) override {
    if (depth_in_unknown_ > 0) return absl::OkStatus();
    key_ = std::string(key);
    return absl::OkStatus();
  }

  absl::Status Scalar(const JsonScalar& value) override {
    if (Skipping()) return absl::OkStatus();
    switch (where_) {
      case Where::kMetadata:
        if (value.kind != JsonScalar::Kind::kString) return Unexpected(value.Show());
        header_.metadata.emplace(key_, value.text);
        return absl::OkStatus();
      case Where::kTensor:
        return Dtype(value);
      case Where::kShape:
        return Dimension(value);
      case Where::kOffsets:
        return Offset(value);
      default:
        return Unexpected(value.Show());
    }
  }

 private:
  enum class Where { kOutside, kRoot, kMetadata, kTensor, kShape, kOffsets };

  // Inside, or at, the value of a tensor's field that this format does not know.
  bool Skipping() const {
    return depth_in_unknown_ > 0 ||
           (where_ == Where::kTensor && key_ != "dtype" && key_ != "shape" && key_ != "data_offsets");
  }
  absl::Status Deeper() {
    ++depth_in_unknown_;
    return absl::OkStatus();
  }
  absl::Status Shallower() {
    --depth_in_unknown_;
    return absl::OkStatus();
  }

  absl::Status Unexpected(absl::string_view what) const {
    switch (where_) {
      case Where::kMetadata:
        return Malformed("__metadata__: value of ", Quoted(key_), " must be a string, not ", what);
      case Where::kTensor:
        return Malformed(Tensor(), key_, " must be ", key_ == "dtype" ? "a string" : "an array", ", not ",
                         what);
      case Where::kShape:
        return Malformed(Tensor(), "shape must hold integers, not ", what);
      case Where::kOffsets:
        return Malformed(Tensor(), "data_offsets must hold integers, not ", what);
      default:
        return key_ == kMetadataKey ? Malformed("__metadata__ must be an object of strings, not ", what)
                                    : Malformed("tensor ", Quoted(key_), " must be an object, not ", what);
    }
  }

  std::string Tensor() const { return absl::StrCat("tensor ", Quoted(tensor_.name), ": "); }

  absl::Status Dtype(const JsonScalar& value) {
    if (key_ != "dtype" || value.kind != JsonScalar::Kind::kString) return Unexpected(value.Show());
    absl::StatusOr<StoredType> type = StoredTypeFromName(value.text);
    if (!type.ok()) return Malformed(Tensor(), type.status().message());
    tensor_.dtype = *type;
    has_dtype_ = true;
    return absl::OkStatus();
  }

  absl::Status Dimension(const JsonScalar& value) {
    if (value.kind != JsonScalar::Kind::kUnsigned || value.number > kMaxBytes) {
      return Malformed(Tensor(), "shape[", tensor_.shape.size(), "] is ", value.Show(),
                       ": must be an integer from 0 to 2^63-1");
    }
    tensor_.shape.push_back(static_cast<int64_t>(value.number));
    return absl::OkStatus();
  }

  absl::Status Offset(const JsonScalar& value) {
    if (value.kind != JsonScalar::Kind::kUnsigned || value.number > kMaxBytes) {
      return Malformed(Tensor(), "data_offsets[", offsets_.size(), "] is ", value.Show(),
                       ": must be an integer from 0 to 2^63-1");
    }
    if (offsets_.size() == 2) return Malformed(Tensor(), "data_offsets has more than 2 values");
    offsets_.push_back(value.number);
    return absl::OkStatus();
  }

  absl::Status FinishTensor() {
    if (!has_dtype_) return Malformed(Tensor(), "dtype is missing");
    if (!has_shape_) return Malformed(Tensor(), "shape is missing");
    if (!has_offsets_) return Malformed(Tensor(), "data_offsets is missing");
    if (offsets_.size() != 2) {
      return Malformed(Tensor(), "data_offsets has ", offsets_.size(), " values instead of 2");
    }
    tensor_.begin = offsets_[0];
    tensor_.end = offsets_[1];
    if (tensor_.begin > tensor_.end) {
      return Malformed(Tensor(), "data_offsets begin at ", tensor_.begin, " after their end ", tensor_.end);
    }
    absl::StatusOr<uint64_t> bytes = BytesOf(tensor_.dtype, tensor_.shape);
    if (!bytes.ok()) return Malformed(Tensor(), bytes.status().message());
    if (*bytes != tensor_.bytes()) {
      return Malformed(Tensor(), "data_offsets [", tensor_.begin, ",", tensor_.end, "] hold ",
                       tensor_.bytes(), " bytes, but ", Name(tensor_.dtype), " ", ShapeText(tensor_.shape),
                       " takes ", *bytes);
    }
    header_.tensors.push_back(std::move(tensor_));
    return absl::OkStatus();
  }

  Header header_;
  Where where_ = Where::kOutside;
  std::string key_;
  int depth_in_unknown_ = 0;
  TensorEntry tensor_;
  std::vector<uint64_t> offsets_;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
};

// Sorts by place and checks that the tensors tile the data.
absl::Status CheckTiling(Header* header) {
  std::sort(header->tensors.begin(), header->tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t reached = 0;
  const TensorEntry* before = nullptr;
  for (const TensorEntry& tensor : header->tensors) {
    if (tensor.end > header->data_bytes) {
      return Malformed("tensor ", Quoted(tensor.name), " ends at offset ", tensor.end, ", past the data's ",
                       header->data_bytes, " bytes: the file is cut short or its header is wrong");
    }
    if (tensor.begin > reached) {
      return Malformed("hole of ", tensor.begin - reached, " bytes at offset ", reached, " before tensor ",
                       Quoted(tensor.name));
    }
    if (tensor.begin < reached) {
      return Malformed("tensor ", Quoted(tensor.name), " at offset ", tensor.begin, " overlaps tensor ",
                       Quoted(before->name), ", which ends at ", reached);
    }
    reached = tensor.end;
    before = &tensor;
  }
  if (reached != header->data_bytes) {
    return Malformed(header->data_bytes - reached, " bytes after the last tensor, from offset ", reached,
                     ": not a safetensors file, or something was appended");
  }
  return absl::OkStatus();
}

// `"name":{"dtype":...}`.
absl::Status AppendEntry(const TensorEntry& tensor, std::string* json) {
  if (absl::Status status = AppendJsonString(tensor.name, json); !status.ok()) {
    return Malformed("tensor name is ", status.message());
  }
  absl::StrAppend(json, ":{\"dtype\":\"", Name(tensor.dtype), "\",\"shape\":[",
                  absl::StrJoin(tensor.shape, ","), "],\"data_offsets\":[", tensor.begin, ",", tensor.end,
                  "]}");
  return absl::OkStatus();
}

absl::Status AppendMetadata(const Metadata& metadata, std::string* json) {
  absl::StrAppend(json, "\"", kMetadataKey, "\":{");
  Metadata all = metadata;
  all.emplace("format", "pt");
  absl::string_view comma = "";
  for (const auto& [key, value] : all) {
    absl::StrAppend(json, comma);
    absl::Status status = AppendJsonString(key, json);
    json->push_back(':');
    if (status.ok()) status = AppendJsonString(value, json);
    if (!status.ok()) return Malformed("__metadata__ entry ", Quoted(key), " is ", status.message());
    comma = ",";
  }
  json->push_back('}');
  return absl::OkStatus();
}

uint64_t LoadLittleEndian64(absl::string_view bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

}  // namespace

absl::StatusOr<uint64_t> ParseHeaderSize(absl::string_view prefix, uint64_t file_bytes) {
  if (file_bytes < kPrefixBytes || prefix.size() < kPrefixBytes) {
    return Malformed("only ", std::min<uint64_t>(file_bytes, prefix.size()),
                     " bytes: a safetensors file begins with 8 bytes of header size");
  }
  const uint64_t size = LoadLittleEndian64(prefix);
  if (size == 0) return Malformed("header size is 0: not a safetensors file, or never finished");
  if (size > kMaxHeaderBytes) {
    return Malformed("header size ", size, " is over the format's limit of ", kMaxHeaderBytes,
                     " bytes: not a safetensors file?");
  }
  if (size > file_bytes - kPrefixBytes) {
    return Malformed("header size ", size, " reaches past the end of the file of ", file_bytes, " bytes");
  }
  return size;
}

absl::StatusOr<Header> Parse(absl::string_view json, uint64_t file_bytes) {
  if (json.size() > kMaxHeaderBytes || json.size() + kPrefixBytes > file_bytes) {
    return Malformed("header of ", json.size(), " bytes does not fit a file of ", file_bytes, " bytes");
  }
  HeaderVisitor visitor;
  if (absl::Status status = ParseStrictJson(json, &visitor); !status.ok()) {
    return Malformed("header: ", status.message());
  }
  Header header = std::move(visitor).Take();
  header.data_begin = kPrefixBytes + json.size();
  header.data_bytes = file_bytes - header.data_begin;
  if (absl::Status status = CheckTiling(&header); !status.ok()) return status;
  return header;
}

absl::StatusOr<std::string> Serialize(const std::vector<TensorEntry>& tensors, const Metadata& metadata) {
  std::string bytes(kPrefixBytes, '\0');
  bytes.push_back('{');
  if (absl::Status status = AppendMetadata(metadata, &bytes); !status.ok()) return status;
  absl::flat_hash_set<absl::string_view> names;
  for (const TensorEntry& tensor : tensors) {
    if (tensor.name.empty()) return Malformed("a tensor has no name");
    if (tensor.name == kMetadataKey) return Malformed("a tensor may not be called ", kMetadataKey);
    if (!names.insert(tensor.name).second)
      return Malformed("tensor ", Quoted(tensor.name), " is there twice");
    bytes.push_back(',');
    if (absl::Status status = AppendEntry(tensor, &bytes); !status.ok()) return status;
  }
  bytes.push_back('}');
  bytes.resize((bytes.size() + 7) / 8 * 8, ' ');
  const uint64_t size = bytes.size() - kPrefixBytes;
  if (size > kMaxWrittenHeaderBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("header of ", size, " bytes for ", tensors.size(), " tensors: common readers stop at ",
                     kMaxWrittenHeaderBytes, ", so split the checkpoint into several files"));
  }
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(size >> (8 * i) & 0xFF);
  return bytes;
}

absl::StatusOr<FilePlan> LayOut(std::vector<TensorSpec> tensors, const Metadata& metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorSpec& a, const TensorSpec& b) {
    const uint64_t size_a = SizeOf(a.dtype), size_b = SizeOf(b.dtype);
    return size_a != size_b ? size_a > size_b : a.name < b.name;
  });
  FilePlan plan;
  plan.header.tensors.reserve(tensors.size());
  uint64_t offset = 0;
  for (TensorSpec& tensor : tensors) {
    absl::StatusOr<uint64_t> bytes = BytesOf(tensor.dtype, tensor.shape);
    if (!bytes.ok()) return Malformed("tensor ", Quoted(tensor.name), ": ", bytes.status().message());
    // The header and its prefix must fit below the limit of file offsets, too.
    if (*bytes > kMaxBytes - kMaxHeaderBytes - kPrefixBytes - offset) {
      return Malformed("tensor ", Quoted(tensor.name), " ends past 2^63-1 bytes of file");
    }
    plan.header.tensors.push_back(
        {std::move(tensor.name), tensor.dtype, std::move(tensor.shape), offset, offset + *bytes});
    offset += *bytes;
  }
  absl::StatusOr<std::string> bytes = Serialize(plan.header.tensors, metadata);
  if (!bytes.ok()) return bytes.status();
  plan.header_bytes = *std::move(bytes);
  plan.header.metadata = metadata;
  plan.header.metadata.emplace("format", "pt");
  plan.header.data_begin = plan.header_bytes.size();
  plan.header.data_bytes = offset;
  return plan;
}

absl::StatusOr<FilePlan> PlanFromHead(std::string head, uint64_t file_bytes) {
  absl::StatusOr<uint64_t> size = ParseHeaderSize(head, file_bytes);
  if (!size.ok()) return size.status();
  if (head.size() != kPrefixBytes + *size) {
    return Malformed("head of ", head.size(), " bytes, but its header size ", *size, " asks for ",
                     kPrefixBytes + *size);
  }
  absl::StatusOr<Header> header = Parse(absl::string_view(head).substr(kPrefixBytes), file_bytes);
  if (!header.ok()) return header.status();
  return FilePlan{*std::move(header), std::move(head)};
}

absl::StatusOr<uint64_t> HeaderBound(const TensorSpec& tensor) {
  std::string json;
  absl::Status status = AppendEntry({tensor.name, tensor.dtype, tensor.shape, kMaxBytes, kMaxBytes}, &json);
  if (!status.ok()) return status;
  return json.size() + 1;  // its comma
}

absl::StatusOr<uint64_t> HeaderBound(const Metadata& metadata) {
  std::string json;
  if (absl::Status status = AppendMetadata(metadata, &json); !status.ok()) return status;
  return json.size() + 2 + 7;  // braces, padding
}

}  // namespace sherd::formats
