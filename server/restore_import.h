// The import that a restore into a running job is (server/import_segment.h). In a job of several hosts each
// host has one of its own, for what it owns (server/host_imports.h).
//
//   absl::StatusOr<ImportSegment> import = CreateImport(plan, memory, id);
//   absl::StatusOr<int64_t> bytes = ReadIntoImport(plan, memory, {0, 1}, *import, go_on);
//
// Functions are thread-safe and block on the file system.
#ifndef SHERD_SERVER_RESTORE_IMPORT_H_
#define SHERD_SERVER_RESTORE_IMPORT_H_

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "runtime/job_memory.h"
#include "server/import_segment.h"
#include "server/restore_plan.h"

namespace sherd::server {

// Of all that the plan has for the job, with update counts and without values.
//   INVALID_ARGUMENT    that is nothing
//   RESOURCE_EXHAUSTED  no room for the values
absl::StatusOr<ImportSegment> CreateImport(const RestorePlan& plan, const runtime::JobMemory& memory,
                                           uint64_t id);

// A share of the files, of what this host owns. Errors are ReadPart's.
absl::StatusOr<int64_t> ReadIntoImport(const RestorePlan& plan, const runtime::JobMemory& memory,
                                       RestoreShare share, const ImportSegment& import,
                                       const std::function<bool()>& go_on);

// On another host than the coordinator's: ReadPart with host_import; errors as in checkpoint.proto.
absl::StatusOr<v1::ReadPartResponse> MakeHostImport(const RestorePlan& plan, const runtime::JobMemory& memory,
                                                    uint64_t generation, const std::function<bool()>& go_on);

// What opening a checkpoint says on a host of several: who it is, and that all must see it.
absl::Status OnHost(const runtime::HostPlace& place, const absl::Status& status);

}  // namespace sherd::server

#endif  // SHERD_SERVER_RESTORE_IMPORT_H_
