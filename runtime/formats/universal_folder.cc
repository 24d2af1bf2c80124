#include "runtime/formats/universal_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/utf8.h"
#include "runtime/dir_tree.h"
#include "runtime/formats/atomic_file.h"
#include "runtime/formats/strict_json.h"
#include "runtime/unique_fd.h"

namespace sherd::formats {

using Kind = PickleDocument::Kind;
using Node = PickleDocument::Node;

namespace {

constexpr absl::string_view kWeightsFile = "fp32.pt";
constexpr absl::string_view kStepFile = "step.pt";
constexpr absl::string_view kModelStates[] = {"mp_rank_00_model_states.pt",
                                              "zero_pp_rank_0_mp_rank_00_model_states.pt"};

bool IsFolder(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}
bool Exists(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0;
}

absl::StatusOr<std::vector<std::string>> List(const std::string& path) {
  const runtime::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.ok()) return FileError(errno, "open the folder", path);
  return runtime::ListDir(fd.get());
}

absl::StatusOr<std::string> FolderOfLatest(const std::string& path) {
  const std::string latest = absl::StrCat(path, "/latest_universal");
  absl::StatusOr<std::string> text = ReadWhole(latest, 4096);
  if (!text.ok()) return text.status();
  const std::string tag(absl::StripAsciiWhitespace(*text));
  if (tag.empty() || tag == "." || tag == ".." || absl::StrContains(tag, '/') ||
      absl::StrContains(tag, '\0')) {
    return absl::InvalidArgumentError(
        absl::StrCat(latest, ": ", Quoted(tag), " must be the plain name of a folder beside it"));
  }
  return absl::StrCat(path, "/", tag);
}

// The tensor that a file of a parameter is about.
const Node& ValueOf(const TorchFile& file) {
  const Node* param = file.document().Find(file.document().root(), "param");
  return param != nullptr ? *param : file.document().root();
}

PickleDocument::Options KeepUnknown() {
  PickleDocument::Options options;
  options.keep_unknown = true;
  return options;
}

// A count of updates: an int, a float, or a tensor of one element.
absl::StatusOr<float> NumberIn(const TorchFile& file, const Node& node) {
  double value = std::nan("");
  if (node.kind == Kind::kInt) value = static_cast<double>(node.integer);
  if (node.kind == Kind::kFloat) value = node.real;
  if (file.IsTensor(node)) {
    absl::StatusOr<TorchTensor> tensor = file.Tensor(node);
    if (!tensor.ok()) return tensor.status();
    char bytes[8] = {};
    const bool is_float = tensor->dtype == StoredType::kF32, is_double = tensor->dtype == StoredType::kF64;
    const bool is_int = tensor->dtype == StoredType::kI32, is_long = tensor->dtype == StoredType::kI64;
    if (tensor->bytes == SizeOf(tensor->dtype) && (is_float || is_double || is_int || is_long)) {
      absl::Status read = file.Read(*tensor, 0, absl::MakeSpan(bytes, tensor->bytes));
      if (!read.ok()) return read;
      const auto as = [&bytes](auto number) {
        std::memcpy(&number, bytes, sizeof number);
        return static_cast<double>(number);
      };
      value = is_float ? as(float{}) : is_double ? as(double{}) : is_int ? as(int32_t{}) : as(int64_t{});
    }
  }
  if (!(value >= 0 && value < 0x1p40) || value != std::floor(value)) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": ", file.document().Describe(node), " is no count of steps"));
  }
  return static_cast<float>(value);
}

}  // namespace

bool UniversalFolder::Is(const std::string& path) {
  return IsFolder(absl::StrCat(path, "/zero")) || Exists(absl::StrCat(path, "/latest_universal"));
}

absl::StatusOr<std::unique_ptr<UniversalFolder>> UniversalFolder::Open(const std::string& path) {
  std::string folder(path);
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  if (!IsFolder(absl::StrCat(folder, "/zero"))) {
    absl::StatusOr<std::string> latest = FolderOfLatest(folder);
    if (!latest.ok()) return latest.status();
    folder = *std::move(latest);
  }
  std::unique_ptr<UniversalFolder> universal(new UniversalFolder(std::move(folder)));
  if (absl::Status status = universal->Load(); !status.ok()) return status;
  return universal;
}

absl::Status UniversalFolder::Load() {
  const std::string zero = absl::StrCat(path_, "/zero");
  absl::StatusOr<std::vector<std::string>> names = List(zero);
  if (!names.ok()) return names.status();
  std::vector<std::string> parameters, without_step;
  for (const std::string& name : *names) {
    const std::string folder = absl::StrCat(zero, "/", name);
    if (!IsFolder(folder)) continue;
    if (!IsValidUtf8(name))
      return absl::InvalidArgumentError(absl::StrCat(folder, ": a name that is no UTF-8"));
    absl::StatusOr<std::vector<std::string>> files = List(folder);
    if (!files.ok()) return files.status();
    if (absl::Status s = AddParameter(name, *files); !s.ok()) return s;
    parameters.push_back(name);
    if (std::find(files->begin(), files->end(), kStepFile) == files->end()) without_step.push_back(name);
  }
  if (parameters.empty()) return absl::NotFoundError(absl::StrCat(zero, " holds no parameter's folder"));
  if (without_step.size() == parameters.size()) {
    if (absl::Status s = AddSharedStep(parameters); !s.ok()) return s;
  }
  if (absl::Status s = AddModule(); !s.ok()) return s;
  std::string twice;
  if (IndexNames(&twice)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(path_, ": tensor ", Quoted(twice), " is there twice"));
}

absl::Status UniversalFolder::AddParameter(const std::string& name, const std::vector<std::string>& files) {
  const std::string folder = absl::StrCat(path_, "/zero/", name, "/");
  if (std::find(files.begin(), files.end(), kWeightsFile) == files.end()) {
    return absl::NotFoundError(absl::StrCat(folder, kWeightsFile, " is missing"));
  }
  if (absl::Status s = AddTensor(name, absl::StrCat(folder, kWeightsFile)); !s.ok()) return s;
  for (const std::string& file : files) {
    if (file == kWeightsFile || !absl::EndsWith(file, ".pt")) continue;
    const std::string path = absl::StrCat(folder, file);
    if (file != kStepFile) {
      absl::Status s = AddTensor(absl::StrCat(absl::StripSuffix(file, ".pt"), "/", name), path);
      if (!s.ok()) return s;
      continue;
    }
    absl::StatusOr<std::unique_ptr<TorchFile>> opened = TorchFile::Open(path, {});
    if (!opened.ok()) return opened.status();
    absl::StatusOr<float> step = NumberIn(**opened, ValueOf(**opened));
    if (!step.ok()) return step.status();
    AddNumber(absl::StrCat("step/", name), *step);
  }
  return absl::OkStatus();
}

absl::Status UniversalFolder::AddTensor(const std::string& name, const std::string& file) {
  absl::StatusOr<std::unique_ptr<TorchFile>> opened = TorchFile::Open(file, {});
  if (!opened.ok()) return opened.status();
  const Node& value = ValueOf(**opened);
  absl::StatusOr<TorchTensor> tensor = (*opened)->Tensor(value);
  if (!tensor.ok()) return tensor.status();
  TensorEntry& entry = entries_.emplace_back();
  entry.name = name;
  entry.dtype = tensor->dtype;
  entry.shape = tensor->shape;
  entry.end = tensor->bytes;
  entry.flat = &value == &(*opened)->document().root() && tensor->shape.size() == 1;
  places_.push_back({file, "", 0});
  return absl::OkStatus();
}

void UniversalFolder::AddNumber(const std::string& name, float value) {
  TensorEntry& entry = entries_.emplace_back();
  entry.name = name;
  entry.end = sizeof(float);
  places_.push_back({"", "", value});
}

// Stage 3 has one step count for all, in the optimizer's own state.
absl::Status UniversalFolder::AddSharedStep(const std::vector<std::string>& names) {
  const std::string path = absl::StrCat(path_, "/zero/optimizer_state.pt");
  if (!Exists(path)) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<TorchFile>> file = TorchFile::Open(path, KeepUnknown());
  if (!file.ok()) return file.status();
  const PickleDocument& document = (*file)->document();
  const Node* optimizer = document.Find(document.root(), "optimizer_state_dict");
  const Node* states = optimizer == nullptr ? nullptr : document.Find(*optimizer, "state");
  if (states == nullptr || states->kind != Kind::kDict || states->items.size() < 2) return absl::OkStatus();
  const Node* step = document.Find(document.at(states->items[1]), "step");
  if (step == nullptr) return absl::OkStatus();
  absl::StatusOr<float> value = NumberIn(**file, *step);
  if (!value.ok()) return value.status();
  for (const std::string& name : names) AddNumber(absl::StrCat("step/", name), *value);
  return absl::OkStatus();
}

// Tensors without a folder in zero/: frozen ones, buffers, other names of tied ones.
absl::Status UniversalFolder::AddModule() {
  absl::flat_hash_set<std::string> known;
  for (const TensorEntry& entry : entries_) known.insert(entry.name);
  for (const absl::string_view name : kModelStates) {
    const std::string path = absl::StrCat(path_, "/", name);
    if (!Exists(path)) continue;
    uint64_t bytes = 0;
    absl::StatusOr<runtime::UniqueFd> fd = OpenRegular(path, &bytes);
    if (!fd.ok()) return fd.status();
    char begin[2] = {};
    // DeepSpeed writes these in torch.save's old form by default: then they stay unread.
    if (bytes < sizeof begin) return absl::OkStatus();
    if (absl::Status s = ReadExactly(fd->get(), path, 0, absl::MakeSpan(begin)); !s.ok()) return s;
    if (begin[0] != 'P' || begin[1] != 'K') return absl::OkStatus();
    absl::StatusOr<std::unique_ptr<TorchFile>> file = TorchFile::Open(path, KeepUnknown());
    if (!file.ok()) return file.status();
    const PickleDocument& document = (*file)->document();
    const Node* module = document.Find(document.root(), "module");
    if (module == nullptr || module->kind != Kind::kDict) return absl::OkStatus();
    for (size_t i = 0; i + 1 < module->items.size(); i += 2) {
      const Node& key = document.at(module->items[i]);
      const Node& value = document.at(module->items[i + 1]);
      if (key.kind != Kind::kString || !IsValidUtf8(key.text) || !(*file)->IsTensor(value)) continue;
      if (!known.insert(std::string(key.text)).second) continue;
      absl::StatusOr<TorchTensor> tensor = (*file)->Tensor(value);
      if (!tensor.ok()) return tensor.status();
      TensorEntry& entry = entries_.emplace_back();
      entry.name = std::string(key.text);
      entry.dtype = tensor->dtype;
      entry.shape = tensor->shape;
      entry.end = tensor->bytes;
      entry.optional = true;
      places_.push_back({path, entry.name, 0});
    }
    return absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const TorchFile>> UniversalFolder::Opened(const std::string& file) const {
  {
    runtime::MutexLock lock(mutex_);
    if (last_ != nullptr && last_->path() == file) return last_;
  }
  absl::StatusOr<std::unique_ptr<TorchFile>> opened = TorchFile::Open(file, KeepUnknown());
  if (!opened.ok()) return opened.status();
  std::shared_ptr<const TorchFile> shared = *std::move(opened);
  runtime::MutexLock lock(mutex_);
  last_ = shared;
  return shared;
}

absl::Status UniversalFolder::ReadWithin(const TensorEntry& entry, uint64_t offset,
                                         absl::Span<char> out) const {
  const Place& place = places_[&entry - entries_.data()];
  if (place.file.empty()) {
    std::memcpy(out.data(), reinterpret_cast<const char*>(&place.value) + offset, out.size());
    return absl::OkStatus();
  }
  absl::StatusOr<std::shared_ptr<const TorchFile>> file = Opened(place.file);
  if (!file.ok()) return file.status();
  const PickleDocument& document = (*file)->document();
  const Node* value = &ValueOf(**file);
  if (!place.key.empty()) {
    const Node* module = document.Find(document.root(), "module");
    value = module == nullptr ? nullptr : document.Find(*module, place.key);
  }
  if (value == nullptr) return absl::DataLossError(absl::StrCat(place.file, " changed while it was read"));
  absl::StatusOr<TorchTensor> tensor = (*file)->Tensor(*value);
  if (!tensor.ok()) return tensor.status();
  if (tensor->dtype != entry.dtype || tensor->bytes != entry.bytes()) {
    return absl::DataLossError(absl::StrCat(place.file, " changed while it was read"));
  }
  return (*file)->Read(*tensor, offset, out);
}

}  // namespace sherd::formats
