// Snapshots as messages of checkpoint.proto. Thread-safe; nothing blocks.
#ifndef SHERD_SERVER_SNAPSHOT_MESSAGES_H_
#define SHERD_SERVER_SNAPSHOT_MESSAGES_H_

#include "absl/status/statusor.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "runtime/job_memory.h"
#include "server/snapshots.h"

namespace sherd::server {

void FillInfo(const runtime::JobMemory& memory, const SnapshotState& state, v1::SnapshotInfo* out);

// INVALID_ARGUMENT, NOT_FOUND: names the field.
absl::StatusOr<SnapshotOptions> OptionsFrom(const runtime::JobMemory& memory,
                                            const v1::SnapshotRequest& request);

}  // namespace sherd::server

#endif  // SHERD_SERVER_SNAPSHOT_MESSAGES_H_
