#include "server/saved_weights.h"

#include <sys/stat.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "runtime/formats/checkpoint.h"
#include "runtime/formats/half.h"
#include "runtime/job_memory.h"

namespace sherd::server {
namespace {

using formats::StoredType;
using formats::TensorEntry;

bool IsFloat(StoredType type) {
  return type == StoredType::kF32 || type == StoredType::kBF16 || type == StoredType::kF16;
}

// "exp_avg/wte.weight" for a parameter wte.weight: of a file that was pulled with the optimizer's state.
bool IsPlaneOf(const JobSpec& job, absl::string_view name) {
  const size_t slash = name.find('/');
  return slash != name.npos && job.layout.Find(name.substr(slash + 1)) != nullptr;
}

const BufferSpec* FindBuffer(const JobSpec& job, const std::string& name) {
  const auto same = [&](const BufferSpec& b) { return b.name == name; };
  const auto found = std::find_if(job.buffers.begin(), job.buffers.end(), same);
  return found == job.buffers.end() ? nullptr : &*found;
}

}  // namespace

bool IsWeights(const std::string& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) return false;
  if (S_ISREG(info.st_mode)) {
    const auto named = [&](absl::string_view ending) { return absl::EndsWith(path, ending); };
    return named(".safetensors") || named(".safetensors.index.json") || named(".pt") || named(".bin");
  }
  const std::string latest = absl::StrCat(path, "/", kLatestName);
  return ::stat(latest.c_str(), &info) != 0 && formats::Checkpoint::Is(path);
}

absl::StatusOr<SavedCheckpoint> OpenWeights(const v1::RestoreFrom& from, const JobSpec& job) {
  const std::string& path = from.directory();
  if (!from.tag().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " holds weights and no checkpoints: there is no tag ", from.tag(), " in it"));
  }
  absl::StatusOr<std::unique_ptr<formats::Checkpoint>> opened = formats::Checkpoint::Open(path);
  if (!opened.ok()) return opened.status();
  SavedCheckpoint saved;
  saved.path = path;
  saved.weights = *std::move(opened);
  std::vector<TensorSpec> tensors;
  for (const formats::CheckpointTensor& t : saved.weights->tensors()) {
    const TensorEntry& entry = *t.entry;
    const TensorInfo* const wanted = job.layout.Find(entry.name);
    if (wanted == nullptr && (entry.optional || IsPlaneOf(job, entry.name))) continue;
    if (const BufferSpec* const buffer = FindBuffer(job, entry.name); buffer != nullptr) {
      const BufferSpec there{entry.name, entry.shape, std::string(formats::Name(entry.dtype))};
      if (there == *buffer) {
        saved.spec.buffers.push_back(there);
      } else if (!from.partial()) {
        return absl::InvalidArgumentError(absl::StrCat(
            path, ": buffer ", entry.name, " is ", there.dtype, " ", formats::ShapeText(there.shape),
            " in the file but ", buffer->dtype, " ", formats::ShapeText(buffer->shape), " in this job"));
      }
      continue;
    }
    if (wanted != nullptr && !IsFloat(entry.dtype)) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", entry.name, " is ",
                                                     formats::Name(entry.dtype),
                                                     "; parameters can be F32, BF16 and F16"));
    }
    TensorSpec& spec = tensors.emplace_back();
    spec.name = entry.name;
    spec.shape = entry.shape;
    if (wanted != nullptr && entry.flat && entry.shape == std::vector<int64_t>{wanted->numel})
      spec.shape = wanted->spec.shape;
  }
  absl::StatusOr<Layout> layout = Layout::Create({std::move(tensors)});
  if (!layout.ok())
    return absl::Status(layout.status().code(), absl::StrCat(path, ": ", layout.status().message()));
  saved.spec.layout = *std::move(layout);
  return saved;
}

absl::Status ReadWeights(const SavedCheckpoint& saved, const TensorInfo& tensor, int64_t first,
                         absl::Span<float> out) {
  const std::string& name = tensor.spec.name;
  const StoredType type = saved.weights->Find(name)->entry->dtype;
  const auto read = [&](absl::Span<char> bytes) {
    return saved.weights->Read(name, static_cast<uint64_t>(first) * formats::SizeOf(type), bytes);
  };
  if (type == StoredType::kF32) return read({reinterpret_cast<char*>(out.data()), out.size() * 4});
  std::vector<uint16_t> halves(out.size());
  const absl::Status status = read({reinterpret_cast<char*>(halves.data()), halves.size() * 2});
  if (!status.ok()) return status;
  if (type == StoredType::kBF16) {
    formats::FloatFromBf16(halves, out);
  } else {
    formats::FloatFromFp16(halves, out);
  }
  return absl::OkStatus();
}

absl::StatusOr<CheckpointState> ReadWeightState(const SavedCheckpoint& saved) {
  CheckpointState state;
  state.buffers.resize(runtime::BufferArea(saved.spec));
  for (size_t b = 0; b < saved.spec.buffers.size(); ++b) {
    const BufferSpec& buffer = saved.spec.buffers[b];
    const absl::Span<char> to(&state.buffers[runtime::BufferOffset(saved.spec, static_cast<int>(b))],
                              BufferBytes(buffer));
    if (absl::Status s = saved.weights->Read(buffer.name, 0, to); !s.ok()) return s;
  }
  return state;
}

}  // namespace sherd::server
