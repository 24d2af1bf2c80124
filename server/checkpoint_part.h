// One slot's part of a checkpoint: a safetensors file of the block ranges that the slot owns of every plane.
//
//   absl::StatusOr<formats::FileSum> sum = WritePart(memory, *reader, slot, servers, path, rate, progress);
//
// A tensor of the file is called "<plane>/<unit>": the blocks of that unit which the slot owns of `servers`
// (core/partition.h), as flat fp32 with each tensor's padding. The data begins at a multiple of 4096, so
// blocks lie aligned for O_DIRECT.
//
// And the checkpoint's one other file, which the coordinator writes: buffers as tensors "buffer/<name>" and
// ranks' blobs as bytes "blob/<rank>".
#ifndef SHERD_SERVER_CHECKPOINT_PART_H_
#define SHERD_SERVER_CHECKPOINT_PART_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/layout.h"
#include "core/types.h"
#include "runtime/formats/safetensors_header.h"
#include "runtime/formats/summed_file.h"
#include "runtime/job_memory.h"
#include "server/snapshot_reader.h"

namespace sherd::server {

// A plane as far as a part is concerned.
struct PartPlane {
  std::string name;
  int64_t blocks = 0;  // of the layout that it reaches
};

// Planes of a job: "param" and the optimizer's.
std::vector<PartPlane> PlanesOf(const runtime::JobMemory& memory);

// The file of `slot`. RESOURCE_EXHAUSTED: too many units for one header.
absl::StatusOr<formats::FilePlan> PlanPart(const Layout& layout, const std::vector<PartPlane>& planes,
                                           Slot slot, int servers);
std::string PartTensorName(const std::string& plane, int unit);

// Told how many bytes are written so far; false gives up (CANCELLED).
using PartProgress = std::function<bool(int64_t bytes)>;

// Writes the part of an open snapshot, which must have all planes. Blocks.
//   RESOURCE_EXHAUSTED, PERMISSION_DENIED, ...   as formats::FileError
//   NOT_FOUND, RESOURCE_EXHAUSTED                the snapshot was lost
absl::StatusOr<formats::FileSum> WritePart(const runtime::JobMemory& memory, SnapshotReader& reader,
                                           Slot slot, int servers, const std::string& path, uint64_t rate,
                                           const PartProgress& progress);

// What a state file holds of a job.
struct CheckpointState {
  std::string buffers;             // the job's buffer area (runtime::BufferArea)
  std::vector<std::string> blobs;  // by rank
};
absl::StatusOr<formats::FileSum> WriteState(const JobSpec& spec, const CheckpointState& state,
                                            const std::string& path);
// DATA_LOSS if the file is damaged or holds something else.
absl::StatusOr<CheckpointState> ReadState(const JobSpec& spec, const std::string& path,
                                          const formats::FileSum& sum);

}  // namespace sherd::server

#endif  // SHERD_SERVER_CHECKPOINT_PART_H_
