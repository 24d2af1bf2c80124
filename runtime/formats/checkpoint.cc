#include "runtime/formats/checkpoint.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/formats/atomic_file.h"
#include "runtime/formats/safetensors_file.h"
#include "runtime/formats/strict_json.h"
#include "runtime/formats/torch_file.h"
#include "runtime/formats/torch_state_dict.h"
#include "runtime/formats/universal_folder.h"
#include "runtime/unique_fd.h"

namespace sherd::formats {
namespace {

// What a folder may hold: a single file, and its index when there are several.
struct FolderForm {
  absl::string_view single, index;
};
constexpr FolderForm kForms[] = {{"model.safetensors", "model.safetensors.index.json"},
                                 {"pytorch_model.bin", "pytorch_model.bin.index.json"}};

// Reads {"metadata":{"total_size":N},"weight_map":{name:file}}; other fields, as other programs write, are
// skipped.
class IndexVisitor : public JsonVisitor {
 public:
  absl::StatusOr<IndexFile> Take() && {
    if (!has_map_) return absl::InvalidArgumentError("weight_map is missing");
    return std::move(index_);
  }

  absl::Status StartObject() override {
    ++depth_;
    if (depth_ == 2 && field_ == "weight_map") has_map_ = true;
    return depth_ > 2 && InMap() ? NotAFile("an object") : absl::OkStatus();
  }
  absl::Status EndObject() override {
    --depth_;
    return absl::OkStatus();
  }
  absl::Status StartArray() override {
    ++depth_;
    return InMap() ? NotAFile("an array") : absl::OkStatus();
  }
  absl::Status EndArray() override { return EndObject(); }
  absl::Status Key(absl::string_view key) override {
    if (depth_ == 1) field_ = std::string(key);
    key_ = std::string(key);
    return absl::OkStatus();
  }
  absl::Status Scalar(const JsonScalar& value) override {
    if (depth_ == 2 && field_ == "metadata" && key_ == "total_size" &&
        value.kind == JsonScalar::Kind::kUnsigned) {
      index_.total_bytes = value.number;
    }
    if (!InMap()) return absl::OkStatus();
    if (depth_ == 1 || value.kind != JsonScalar::Kind::kString) return NotAFile(value.Show());
    if (value.text.empty() || value.text == "." || value.text == ".." || absl::StrContains(value.text, '/') ||
        absl::StrContains(value.text, '\0')) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(key_), ": file ", value.Show(),
                                                     " must be a plain name in the index's own folder"));
    }
    index_.weight_map.emplace(key_, value.text);
    return absl::OkStatus();
  }

 private:
  bool InMap() const { return field_ == "weight_map"; }
  absl::Status NotAFile(absl::string_view what) const {
    if (depth_ == 1 || !has_map_) {
      return absl::InvalidArgumentError(
          absl::StrCat("weight_map must be an object of tensor to file, not ", what));
    }
    return absl::InvalidArgumentError(
        absl::StrCat("weight_map: file of tensor ", Quoted(key_), " must be a string, not ", what));
  }

  IndexFile index_;
  int depth_ = 0;
  std::string field_;  // the last key of the outermost object
  std::string key_;
  bool has_map_ = false;
};

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  absl::StatusOr<std::string> bytes = ReadWhole(path, kMaxHeaderBytes);
  if (absl::IsOutOfRange(bytes.status())) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": too large for an index of tensors"));
  }
  return bytes;
}

bool Exists(const std::string& path) {
  struct stat file;
  return stat(path.c_str(), &file) == 0;
}

std::string ShardName(absl::string_view stem, size_t index, size_t count) {
  return count == 1 ? absl::StrCat(stem, ".safetensors")
                    : absl::StrFormat("%s-%05d-of-%05d.safetensors", stem, index + 1, count);
}

}  // namespace

absl::StatusOr<CheckpointPlan> SplitPlan(const std::vector<TensorSpec>& tensors, uint64_t max_file_bytes,
                                         absl::string_view stem, const Metadata& metadata) {
  if (max_file_bytes == 0)
    return absl::InvalidArgumentError("files of at most 0 bytes: give a positive size");
  if (stem.empty() || absl::StrContains(stem, '/')) {
    return absl::InvalidArgumentError(absl::StrCat("name of a checkpoint must be plain, not ", Quoted(stem)));
  }
  const absl::StatusOr<uint64_t> fixed = HeaderBound(metadata);
  if (!fixed.ok()) return fixed.status();

  CheckpointPlan plan;
  plan.stem = std::string(stem);
  std::vector<std::vector<TensorSpec>> groups(1);
  absl::flat_hash_set<absl::string_view> names;
  uint64_t head = *fixed, data = 0;  // of the last group
  for (const TensorSpec& tensor : tensors) {
    const std::string name = absl::StrCat("tensor ", Quoted(tensor.name));
    if (!names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(absl::StrCat(name, " is there twice"));
    }
    const absl::StatusOr<uint64_t> bytes = BytesOf(tensor.dtype, tensor.shape);
    if (!bytes.ok()) return absl::InvalidArgumentError(absl::StrCat(name, ": ", bytes.status().message()));
    const absl::StatusOr<uint64_t> entry = HeaderBound(tensor);
    if (!entry.ok()) return entry.status();
    const bool fits = head + *entry <= kMaxWrittenHeaderBytes &&
                      kPrefixBytes + head + *entry + data + *bytes <= max_file_bytes;
    if (!fits && !groups.back().empty()) {
      groups.emplace_back();
      head = *fixed;
      data = 0;
    }
    groups.back().push_back(tensor);
    head += *entry;
    data += *bytes;
    if (__builtin_add_overflow(plan.total_bytes, *bytes, &plan.total_bytes)) {
      return absl::InvalidArgumentError(absl::StrCat(name, ": all together take more than 2^64 bytes"));
    }
  }
  for (size_t i = 0; i < groups.size(); ++i) {
    absl::StatusOr<FilePlan> file = LayOut(std::move(groups[i]), metadata);
    if (!file.ok()) return file.status();
    plan.files.push_back({ShardName(stem, i, groups.size()), *std::move(file)});
  }
  return plan;
}

absl::StatusOr<IndexFile> ParseIndex(absl::string_view json) {
  IndexVisitor visitor;
  if (absl::Status status = ParseStrictJson(json, &visitor); !status.ok()) return status;
  return std::move(visitor).Take();
}

absl::StatusOr<std::string> SerializeIndex(const IndexFile& index) {
  std::string json = absl::StrCat("{\n  \"metadata\": {\n    \"total_size\": ", index.total_bytes,
                                  "\n  },\n  \"weight_map\": {");
  absl::string_view comma = "\n    ";
  for (const auto& [tensor, file] : index.weight_map) {
    absl::StrAppend(&json, comma);
    absl::Status status = AppendJsonString(tensor, &json);
    json += ": ";
    if (status.ok()) status = AppendJsonString(file, &json);
    if (!status.ok()) return status;
    comma = ",\n    ";
  }
  json += "\n  }\n}\n";
  return json;
}

IndexFile IndexOf(const CheckpointPlan& plan) {
  IndexFile index;
  index.total_bytes = plan.total_bytes;
  for (const PlannedFile& file : plan.files) {
    for (const TensorEntry& tensor : file.plan.header.tensors)
      index.weight_map.emplace(tensor.name, file.name);
  }
  return index;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  struct stat file;
  if (stat(path.c_str(), &file) != 0) return FileError(errno, "open", path);
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint(path));
  absl::Status status = S_ISDIR(file.st_mode)           ? checkpoint->OpenFolder(path)
                        : absl::EndsWith(path, ".json") ? checkpoint->OpenIndex(path)
                                                        : checkpoint->OpenFile(path);
  if (status.ok()) status = checkpoint->Collect();
  if (!status.ok()) return status;
  return checkpoint;
}

bool Checkpoint::Is(const std::string& folder) {
  for (const FolderForm& form : kForms) {
    for (const absl::string_view name : {form.index, form.single}) {
      if (Exists(absl::StrCat(folder, "/", name))) return true;
    }
  }
  return UniversalFolder::Is(folder);
}

absl::Status Checkpoint::OpenFolder(const std::string& path) {
  for (const FolderForm& form : kForms) {
    const std::string index = absl::StrCat(path, "/", form.index);
    const std::string single = absl::StrCat(path, "/", form.single);
    const bool has_index = Exists(index), has_single = Exists(single);
    if (has_index && has_single) {
      return absl::FailedPreconditionError(absl::StrCat(path, " holds both ", form.index, " and ",
                                                        form.single,
                                                        ": remove the stale one, or name the file to open"));
    }
    if (has_index) return OpenIndex(index);
    if (has_single) return OpenFile(single);
  }
  if (UniversalFolder::Is(path)) {
    absl::StatusOr<std::unique_ptr<UniversalFolder>> folder = UniversalFolder::Open(path);
    if (!folder.ok()) return folder.status();
    files_.push_back(*std::move(folder));
    return absl::OkStatus();
  }
  return absl::NotFoundError(absl::StrCat(
      path, " holds neither ", kForms[0].index, " nor ", kForms[0].single, " nor ", kForms[1].index, " nor ",
      kForms[1].single, ", and no zero/ of DeepSpeed's universal form: name the file to open"));
}

absl::Status Checkpoint::OpenFile(const std::string& path) {
  uint64_t bytes = 0;
  absl::StatusOr<runtime::UniqueFd> fd = OpenRegular(path, &bytes);
  if (!fd.ok()) return fd.status();
  std::string first(std::min<uint64_t>(bytes, 16), '\0');
  if (absl::Status s = ReadExactly(fd->get(), path, 0, absl::MakeSpan(&first[0], first.size())); !s.ok()) {
    return s;
  }
  const auto add = [this](auto reader) -> absl::Status {
    if (!reader.ok()) return reader.status();
    files_.push_back(*std::move(reader));
    return absl::OkStatus();
  };
  return TorchFile::Begins(first) ? add(TorchStateDict::Open(path)) : add(SafetensorsReader::Open(path));
}

absl::Status Checkpoint::OpenIndex(const std::string& path) {
  absl::StatusOr<std::string> json = ReadSmallFile(path);
  if (!json.ok()) return json.status();
  absl::StatusOr<IndexFile> index = ParseIndex(*json);
  if (!index.ok()) return absl::InvalidArgumentError(absl::StrCat(path, ": ", index.status().message()));

  const size_t slash = path.rfind('/');
  const std::string directory = slash == path.npos ? "" : path.substr(0, slash + 1);
  std::map<std::string, size_t> opened;
  for (const auto& [tensor, name] : index->weight_map) {
    if (!opened.emplace(name, files_.size()).second) continue;
    if (absl::Status status = OpenFile(directory + name); !status.ok()) {
      return absl::Status(status.code(), absl::StrCat(path, ": shard ", Quoted(name), " of tensor ",
                                                      Quoted(tensor), ": ", status.message()));
    }
  }
  for (const auto& [tensor, name] : index->weight_map) {
    if (files_[opened.at(name)]->Find(tensor) != nullptr) continue;
    return absl::NotFoundError(
        absl::StrCat(path, ": tensor ", Quoted(tensor), " is listed but absent from ", Quoted(name)));
  }
  for (const auto& [name, file] : opened) {
    for (const TensorEntry& tensor : files_[file]->tensors()) {
      const auto listed = index->weight_map.find(tensor.name);
      if (listed == index->weight_map.end()) {
        return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", Quoted(tensor.name), " is in ",
                                                       Quoted(name), " but not listed: the index is stale"));
      }
      if (listed->second != name) {
        return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", Quoted(tensor.name),
                                                       " is in two files, ", Quoted(listed->second), " and ",
                                                       Quoted(name)));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::Collect() {
  for (size_t file = 0; file < files_.size(); ++file) {
    for (const TensorEntry& tensor : files_[file]->tensors()) {
      tensors_.push_back({&tensor, file});
      if (__builtin_add_overflow(total_bytes_, tensor.bytes(), &total_bytes_)) {
        return absl::InvalidArgumentError(absl::StrCat(path_, ": tensors take more than 2^64 bytes"));
      }
    }
  }
  std::sort(tensors_.begin(), tensors_.end(), [](const CheckpointTensor& a, const CheckpointTensor& b) {
    return a.entry->name < b.entry->name;
  });
  for (size_t i = 0; i < tensors_.size(); ++i) by_name_.emplace(tensors_[i].entry->name, i);
  return absl::OkStatus();
}

const CheckpointTensor* Checkpoint::Find(absl::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &tensors_[it->second];
}

absl::Status Checkpoint::Read(absl::string_view name, uint64_t offset, absl::Span<char> out) const {
  const CheckpointTensor* tensor = Find(name);
  if (tensor == nullptr) return absl::NotFoundError(absl::StrCat(path_, ": no tensor ", Quoted(name)));
  return files_[tensor->file]->Read(name, offset, out);
}

}  // namespace sherd::formats
