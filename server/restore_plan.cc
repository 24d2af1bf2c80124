#include "server/restore_plan.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/partition.h"
#include "core/reshard_plan.h"
#include "runtime/mutex.h"
#include "server/checkpoint_part.h"
#include "server/saved_weights.h"

namespace sherd::server {
namespace {

using formats::SummedFileReader;
using runtime::JobMemory;

constexpr int64_t kBlockBytes = kBlockElements * 4;
// Readers of one part: one checks and copies while the disk works for the other.
constexpr int kReaders = 2;
// Of weights, read at once: 4 MiB.
constexpr int64_t kPieceBlocks = (int64_t{1} << 20) / kBlockElements;

std::string Shape(const TensorSpec& spec) { return absl::StrCat("[", absl::StrJoin(spec.shape, ","), "]"); }

// A piece of a plane that lies in one file in one go.
struct Extent {
  int file;        // of the manifest's parts
  int64_t offset;  // in the file
  int64_t bytes;
  char* to;
  // What it is in the job: bytes / kBlockBytes blocks from this one on.
  int tensor;
  int plane;
  int64_t block;
};

// Finds the blocks of the checkpoint in its files.
class Source {
 public:
  explicit Source(const SavedCheckpoint& saved)
      : saved_(saved), owners_(Assignment::Uniform(saved.spec.layout, saved.manifest.servers())) {
    const Layout& layout = saved.spec.layout;
    int64_t trainable = 0;
    for (const TensorInfo& t : layout.tensors()) {
      if (t.spec.trainable) trainable = std::max(trainable, layout.units()[t.unit].blocks.end);
    }
    for (const std::string& name : saved.manifest.planes())
      planes_.push_back({name, planes_.empty() ? layout.total_blocks() : trainable});
  }

  // Appends where `blocks` (of the checkpoint) of a plane lie, in order. `first` says where they go, and what
  // they are there; its file, offset and size count for nothing.
  absl::Status Find(const std::string& plane, BlockRange blocks, Extent first, std::vector<Extent>* out) {
    while (!blocks.empty()) {
      const int unit = saved_.spec.layout.UnitAt(blocks.begin);
      const Slot slot = owners_.OwnerOf(blocks.begin);
      const BlockRange owned =
          Owned(saved_.spec.layout.units()[unit].blocks, slot, saved_.manifest.servers());
      const int64_t end = std::min(blocks.end, owned.end);
      absl::StatusOr<int64_t> data = Begin(slot, plane, unit);
      if (!data.ok()) return data.status();
      first.file = slot.value();
      first.offset = *data + (blocks.begin - owned.begin) * kBlockBytes;
      first.bytes = (end - blocks.begin) * kBlockBytes;
      out->push_back(first);
      first.to += first.bytes;
      first.block += end - blocks.begin;
      blocks.begin = end;
    }
    return absl::OkStatus();
  }

 private:
  // Offset in the slot's file at which its blocks of (plane, unit) begin. The file is laid out by the same
  // code that wrote it; that it is that file, its checksums say.
  absl::StatusOr<int64_t> Begin(Slot slot, const std::string& plane, int unit) {
    const auto it = places_.find(slot.value());
    std::map<std::string, int64_t>* places = it == places_.end() ? nullptr : &it->second;
    if (places == nullptr) {
      absl::StatusOr<formats::FilePlan> plan =
          PlanPart(saved_.spec.layout, planes_, slot, saved_.manifest.servers());
      if (!plan.ok()) return plan.status();
      const v1::CheckpointManifest::File& file = saved_.manifest.parts(slot.value());
      if (static_cast<int64_t>(plan->header.file_bytes()) != file.bytes()) {
        return absl::DataLossError(absl::StrCat(saved_.PathOf(file), " has ", file.bytes(), " bytes where ",
                                                plan->header.file_bytes(),
                                                " were expected: it is not of this checkpoint"));
      }
      places = &places_[slot.value()];
      for (const formats::TensorEntry& t : plan->header.tensors)
        (*places)[t.name] = static_cast<int64_t>(plan->header.data_begin + t.begin);
    }
    const auto at = places->find(PartTensorName(plane, unit));
    if (at == places->end()) {
      return absl::DataLossError(absl::StrCat(saved_.PathOf(saved_.manifest.parts(slot.value())),
                                              " has no plane ", plane, " of unit ", unit));
    }
    return at->second;
  }

  const SavedCheckpoint& saved_;
  const Assignment owners_;
  std::vector<PartPlane> planes_;
  std::map<int, std::map<std::string, int64_t>> places_;
};

// A chunk of a file and what of it is wanted.
struct ChunkWork {
  int file;
  int64_t chunk;
  std::vector<Extent> extents;  // within the chunk; offsets of the file
};

std::vector<ChunkWork> SplitByChunk(const SavedCheckpoint& saved, std::vector<Extent> extents) {
  std::map<std::pair<int, int64_t>, std::vector<Extent>> by_chunk;
  for (Extent e : extents) {
    const int64_t size = saved.manifest.parts(e.file).chunk_bytes();
    while (e.bytes > 0) {
      const int64_t chunk = e.offset / size;
      // Chunks and all that parts hold begin at multiples of blocks (CheckFileSum, PlanPart).
      Extent now = e;
      now.bytes = std::min(e.bytes, (chunk + 1) * size - e.offset);
      by_chunk[{e.file, chunk}].push_back(now);
      e.offset += now.bytes, e.bytes -= now.bytes, e.to += now.bytes, e.block += now.bytes / kBlockBytes;
    }
  }
  std::vector<ChunkWork> work;
  for (auto& [key, list] : by_chunk) work.push_back({key.first, key.second, std::move(list)});
  return work;
}

// Where everything lies that has a place to go.
absl::StatusOr<std::vector<Extent>> FindAll(const RestorePlan& plan, const JobMemory& memory,
                                            const RestoreTarget& target) {
  const SavedCheckpoint& saved = plan.saved();
  Source source(saved);
  std::vector<Extent> extents;
  for (const TensorInfo& tensor : memory.layout().tensors()) {
    if (plan.SavedTensor(tensor.index) < 0 || tensor.blocks.empty()) continue;
    const int64_t shift =
        saved.spec.layout.tensors()[plan.SavedTensor(tensor.index)].blocks.begin - tensor.blocks.begin;
    for (int p = 0; p < plan.PlanesFor(tensor); ++p) {
      const BlockRange blocks = target.wanted ? target.wanted(tensor, p) : tensor.blocks;
      if (blocks.empty()) continue;
      const BlockRange from{blocks.begin + shift, blocks.end + shift};
      Extent first{};
      first.to = reinterpret_cast<char*>(target.into(p, blocks));
      if (first.to == nullptr) continue;
      first.tensor = tensor.index, first.plane = p, first.block = blocks.begin;
      if (absl::Status s = source.Find(memory.plane_name(p), from, first, &extents); !s.ok()) return s;
    }
  }
  return extents;
}

// The files that `work` reads, by their place in the manifest.
absl::StatusOr<std::map<int, std::unique_ptr<SummedFileReader>>> OpenFiles(const SavedCheckpoint& saved,
                                                                           absl::Span<const ChunkWork> work) {
  std::map<int, std::unique_ptr<SummedFileReader>> files;
  for (const ChunkWork& w : work) {
    if (files.count(w.file) != 0) continue;
    const v1::CheckpointManifest::File& file = saved.manifest.parts(w.file);
    absl::StatusOr<formats::FileSum> sum = SumOf(file);
    if (!sum.ok()) return sum.status();
    absl::StatusOr<std::unique_ptr<SummedFileReader>> opened =
        SummedFileReader::Open(saved.PathOf(file), *std::move(sum));
    if (!opened.ok()) return opened.status();
    files[w.file] = *std::move(opened);
  }
  return files;
}

// Does `count` pieces of work by kReaders threads, each with a worker of its own; the first error ends it.
absl::Status ReadInParallel(size_t count,
                            const std::function<std::function<absl::Status(size_t)>()>& make_worker) {
  runtime::Mutex mu;
  absl::Status status;
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  const auto read = [&] {
    const std::function<absl::Status(size_t)> worker = make_worker();
    for (size_t i = next.fetch_add(1); i < count && !failed; i = next.fetch_add(1)) {
      const absl::Status s = worker(i);
      if (s.ok()) continue;
      runtime::MutexLock lock(mu);
      if (!failed.exchange(true)) status = s;
    }
  };
  std::vector<std::thread> readers;
  for (int i = 1; i < kReaders; ++i) readers.emplace_back(read);
  read();
  for (std::thread& t : readers) t.join();
  return status;
}

template <typename Work>
// In turns: disks are rarely as fast with one file as with the other, and the restore takes as long as the
// slowest.
std::vector<Work> ShareOf(const std::vector<Work>& all, RestoreShare share) {
  std::vector<Work> mine;
  for (size_t i = share.share; i < all.size(); i += share.shares) mine.push_back(all[i]);
  return mine;
}

absl::Status GivenUp() { return absl::CancelledError("the restore was given up"); }

// Blocks of a tensor of the job that are read at once.
struct WeightPiece {
  int tensor;
  BlockRange blocks;
  float* to;
};

// What of weights goes into plane "param".
std::vector<WeightPiece> FindWeights(const RestorePlan& plan, const JobMemory& memory,
                                     const RestoreTarget& target) {
  std::vector<WeightPiece> pieces;
  for (const TensorInfo& tensor : memory.layout().tensors()) {
    if (plan.SavedTensor(tensor.index) < 0) continue;
    BlockRange rest = target.wanted ? target.wanted(tensor, 0) : tensor.blocks;
    float* to = rest.empty() ? nullptr : target.into(0, rest);
    while (to != nullptr && !rest.empty()) {
      const BlockRange now{rest.begin, std::min(rest.end, rest.begin + kPieceBlocks)};
      pieces.push_back({tensor.index, now, to});
      to += now.size() * kBlockElements;
      rest.begin = now.end;
    }
  }
  return pieces;
}

absl::StatusOr<int64_t> ReadWeightsPart(const RestorePlan& plan, const JobMemory& memory, RestoreShare share,
                                        const RestoreTarget& target, const std::function<bool()>& go_on) {
  const std::vector<WeightPiece> all = FindWeights(plan, memory, target);
  const std::vector<WeightPiece> work = ShareOf(all, share);
  std::atomic<int64_t> bytes{0};
  const auto read = [&](size_t i) {
    const auto& [index, blocks, to] = work[i];
    const TensorInfo& tensor = memory.layout().tensors()[index];
    const int64_t first = (blocks.begin - tensor.blocks.begin) * kBlockElements;
    const int64_t room = blocks.size() * kBlockElements;
    const int64_t count = std::min(room, tensor.numel - first);
    if (!go_on()) return GivenUp();
    if (absl::Status s = ReadWeights(plan.saved(), tensor, first, {to, static_cast<size_t>(count)}); !s.ok())
      return s;
    std::fill(to + count, to + room, 0.0f);
    if (target.stored) target.stored(index, 0, blocks);
    bytes += room * 4;
    return absl::OkStatus();
  };
  const absl::Status status = ReadInParallel(work.size(), [&] { return read; });
  if (!status.ok()) return status;
  return bytes.load();
}

}  // namespace

absl::StatusOr<RestorePlan> RestorePlan::Open(const v1::RestoreFrom& from, const JobSpec& job) {
  absl::StatusOr<SavedCheckpoint> saved =
      IsWeights(from.directory()) ? OpenWeights(from, job) : OpenCheckpoint(from.directory(), from.tag());
  if (!saved.ok()) return saved.status();
  return Create(*std::move(saved), job, from);
}

absl::StatusOr<RestorePlan> RestorePlan::Create(SavedCheckpoint saved, const JobSpec& job,
                                                const v1::RestoreFrom& from) {
  const bool weights_only = from.weights_only() || saved.weights != nullptr;
  RestorePlan plan(std::move(saved), weights_only);
  const JobSpec& there = plan.saved_.spec;
  const auto in = [&](const std::string& problem) { return absl::StrCat(plan.saved_.path, ": ", problem); };
  if (!weights_only) {
    if (there.optimizer != job.optimizer) {
      return absl::FailedPreconditionError(in(absl::StrCat(
          "the checkpoint has the state of ", Name(there.optimizer), " but this job trains with ",
          Name(job.optimizer), ": use that optimizer, or restore the weights only")));
    }
    const std::vector<std::string> names = job.PlaneNames();
    for (const std::string& name : names) {
      const auto& planes = plan.saved_.manifest.planes();
      if (std::find(planes.begin(), planes.end(), name) == planes.end())
        return absl::DataLossError(in(absl::StrCat("there is no plane ", name, " in the checkpoint")));
    }
    plan.planes_ = static_cast<int>(names.size());
  }
  std::set<int> used;
  for (const TensorInfo& t : job.layout.tensors()) {
    const TensorInfo* s = there.layout.Find(t.spec.name);
    int source = s == nullptr ? -1 : s->index;
    if (s == nullptr && !from.partial()) {
      return absl::InvalidArgumentError(
          in(absl::StrCat("tensor ", t.spec.name,
                          " of this job is not in the checkpoint: restore it into the "
                          "model that was saved, or match partially, by name")));
    }
    if (s != nullptr) used.insert(source);
    if (s != nullptr && s->spec.shape != t.spec.shape) {
      if (!from.partial()) {
        return absl::InvalidArgumentError(
            in(absl::StrCat("tensor ", t.spec.name, " has shape ", Shape(s->spec), " in the checkpoint but ",
                            Shape(t.spec), " in this job: restore it into the model that was saved")));
      }
      source = -1;
    }
    plan.source_.push_back(source);
  }
  for (const TensorInfo& t : there.layout.tensors()) {
    if (used.count(t.index) != 0) continue;
    if (!from.partial()) {
      return absl::InvalidArgumentError(
          in(absl::StrCat("tensor ", t.spec.name,
                          " of the checkpoint is not in this job: restore it into the "
                          "model that was saved, or match partially, by name")));
    }
    plan.extra_.push_back(t.spec.name);
  }
  return plan;
}

v1::RestoreReport RestorePlan::Report(const JobSpec& job) const {
  v1::RestoreReport report;
  report.set_path(saved_.path);
  report.set_step(saved_.manifest.step());
  report.set_world_size(saved_.spec.world_size);
  report.set_servers(saved_.manifest.servers());
  for (const TensorInfo& t : job.layout.tensors()) {
    const TensorInfo* s = saved_.spec.layout.Find(t.spec.name);
    if (source_[t.index] >= 0) {
      report.add_matched(t.spec.name);
    } else if (s == nullptr) {
      report.add_missing(t.spec.name);
    } else {
      report.add_mismatched(absl::StrCat(t.spec.name, " ", Shape(t.spec), " ", Shape(s->spec)));
    }
  }
  for (const std::string& name : extra_) report.add_extra(name);
  return report;
}

uint64_t RestorePlan::UpdateCount(int tensor) const {
  return weights_only_ || source_[tensor] < 0 ? 0 : saved_.manifest.update_counts(source_[tensor]);
}

int RestorePlan::PlanesFor(const TensorInfo& tensor) const {
  if (source_[tensor.index] < 0) return 0;
  // What was frozen has no state; what is frozen needs none.
  const bool both =
      tensor.spec.trainable && saved_.spec.layout.tensors()[source_[tensor.index]].spec.trainable;
  return both ? planes_ : 1;
}

absl::StatusOr<int64_t> ReadPart(const RestorePlan& plan, const JobMemory& memory, RestoreShare share,
                                 const RestoreTarget& target, const std::function<bool()>& go_on) {
  if (plan.saved().weights != nullptr) return ReadWeightsPart(plan, memory, share, target, go_on);
  absl::StatusOr<std::vector<Extent>> extents = FindAll(plan, memory, target);
  if (!extents.ok()) return extents.status();
  const std::vector<ChunkWork> all = SplitByChunk(plan.saved(), *std::move(extents));
  const std::vector<ChunkWork> work = ShareOf(all, share);
  const absl::StatusOr<std::map<int, std::unique_ptr<SummedFileReader>>> files =
      OpenFiles(plan.saved(), work);
  if (!files.ok()) return files.status();
  int64_t buffer_bytes = 1;
  for (const auto& [index, file] : *files) buffer_bytes = std::max(buffer_bytes, file->buffer_bytes());
  std::atomic<int64_t> bytes{0};
  const auto read = [&](size_t i, const formats::DirectBuffer& buffer) {
    const SummedFileReader& file = *files->at(work[i].file);
    const absl::StatusOr<absl::Span<const char>> chunk = file.Read(work[i].chunk, buffer);
    if (!chunk.ok()) return chunk.status();
    if (!go_on()) return GivenUp();
    const int64_t chunk_begin = work[i].chunk * file.sum().chunk_bytes;
    for (const Extent& e : work[i].extents) {
      const BlockRange blocks{e.block, e.block + e.bytes / kBlockBytes};
      std::memcpy(e.to, chunk->data() + (e.offset - chunk_begin), e.bytes);
      if (target.stored) target.stored(e.tensor, e.plane, blocks);
      bytes += e.bytes;
    }
    return absl::OkStatus();
  };
  const absl::Status status = ReadInParallel(work.size(), [&] {
    const auto buffer = std::make_shared<formats::DirectBuffer>(buffer_bytes);
    return [&read, buffer](size_t i) { return read(i, *buffer); };
  });
  if (!status.ok()) return status;
  return bytes.load();
}

}  // namespace sherd::server
