// Weights as other programs keep them, seen as a checkpoint that has parameters alone: what a model that is
// to compute and not to be trained begins with, and what training goes on from.
//
//   if (IsWeights(from.directory())) saved = OpenWeights(from, spec);
//   absl::Status read = ReadWeights(*saved, *spec.layout.Find("wte.weight"), /*first=*/0, into);
//
// Folders and files are those of runtime/formats/checkpoint.h. Tensors are F32, BF16 or F16 and become fp32.
//
// Functions are thread-safe and block on the file system.
#ifndef SHERD_SERVER_SAVED_WEIGHTS_H_
#define SHERD_SERVER_SAVED_WEIGHTS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/job_spec.h"
#include "core/layout.h"
#include "proto/sherd/v1/shard.pb.h"
#include "server/checkpoint_manifest.h"
#include "server/checkpoint_part.h"

namespace sherd::server {

// Whether `path` is a folder of them or, by its name, a file; and not a directory that `sherd save` wrote.
bool IsWeights(const std::string& path);

// For a job: SavedCheckpoint::spec has the stored tensors, with the job's buffers among them as buffers. What
// belongs to an optimizer is passed over, and so is what a format says may be.
//   INVALID_ARGUMENT  a tensor of the job is of another type; a buffer differs (unless partial); or a tag is
//                     asked for
//   else              formats::Checkpoint::Open's
absl::StatusOr<SavedCheckpoint> OpenWeights(const v1::RestoreFrom& from, const JobSpec& job);

// Elements from `first` on of a tensor of the job. REQUIRES: it is there, in that shape, and has them.
//   DATA_LOSS  the file was cut since
absl::Status ReadWeights(const SavedCheckpoint& saved, const TensorInfo& tensor, int64_t first,
                         absl::Span<float> out);

// The buffers, for no rank's blob.
absl::StatusOr<CheckpointState> ReadWeightState(const SavedCheckpoint& saved);

}  // namespace sherd::server

#endif  // SHERD_SERVER_SAVED_WEIGHTS_H_
