// What a stream of values that a peer is about to send will hold, checked against the job, and which host of
// it owns which bytes.
//
//   absl::StatusOr<ImportPlan> plan = PlanImport(memory, manifest, whole_model);
//   for (const ImportRun& run : RunsOf(*plan, memory)) ...
//
// Functions are thread-safe and do not block.
#ifndef SHERD_SERVER_IMPORT_PLAN_H_
#define SHERD_SERVER_IMPORT_PLAN_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/types.h"
#include "proto/sherd/v1/common.pb.h"
#include "proto/sherd/v1/shard.pb.h"
#include "runtime/job_memory.h"
#include "server/import_segment.h"

namespace sherd::server {

struct ImportPlan {
  struct Value {
    ImportSegment::Item item;
    DType dtype = DType::kFloat32;  // of what is sent
    int64_t numel = 0;              // of the whole tensor; 1 for an update count
  };
  std::vector<Value> values;  // in the order of the stream
};

// `whole_model`: every tensor must be there in plane "param".
//   NOT_FOUND         no such tensor or plane
//   INVALID_ARGUMENT  a shape differs, a tensor comes twice or is missing, a buffer, an unknown dtype
absl::StatusOr<ImportPlan> PlanImport(const runtime::JobMemory& memory, const v1::ImportManifest& manifest,
                                      bool whole_model);

// Whether the chunk is the next one of a stream of `total` bytes, and undamaged. INVALID_ARGUMENT: not the
// offset that follows, or past the end; DATA_LOSS: the crc does not match.
absl::Status CheckChunk(const v1::Chunk& chunk, uint64_t at, uint64_t total);

// Bytes of the stream that one host of the first group owns, and its counterparts in others (HostGrid);
// together, in order, all of them.
struct ImportRun {
  static constexpr int kAllHosts = -1;  // update counts, which every host has
  int host = 0;
  uint64_t bytes = 0;
};
std::vector<ImportRun> RunsOf(const ImportPlan& plan, const runtime::JobMemory& memory);

}  // namespace sherd::server

#endif  // SHERD_SERVER_IMPORT_PLAN_H_
