// An import of a job of several hosts: on each host there is one, for what that host owns, and all of them
// have the same id before the coordinator proposes it, or a STEP record names it.
//
//   HostImports imports(others);                    // null in a job of one host
//   imports.Set(host, response.import_id());        // of each other host
//   absl::Status s = imports.Name(to, generation, deadline);
//
// Functions are thread-safe and block on other hosts.
#ifndef SHERD_SERVER_HOST_IMPORTS_H_
#define SHERD_SERVER_HOST_IMPORTS_H_

#include <cstdint>
#include <map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "runtime/job_memory.h"
#include "server/coordinator.h"
#include "server/other_hosts.h"

namespace sherd::server {

// What the other hosts have made. Thread-compatible.
class HostImports {
 public:
  // `others` is borrowed; null: there are none.
  explicit HostImports(const OtherHosts* others) : others_(others) {}
  // Removes those that were not named, where that can be done.
  ~HostImports();

  void Set(int host, uint64_t id) { ids_[host] = id; }
  // All of them get this id; `generation` as in import_names.h. May be repeated. UNAVAILABLE names a host
  // that could not be reached or has lost what it made; what the others did then goes by itself.
  absl::Status Name(uint64_t to, uint64_t generation, absl::Time deadline);

 private:
  const OtherHosts* const others_;
  std::map<int, uint64_t> ids_;
  bool named_ = false;
};

// The calls of CheckpointService with these names; errors as there.
absl::Status DropImportHere(const runtime::JobMemory& memory, const v1::DropImportRequest& request);
absl::StatusOr<v1::ProposeImportResponse> ProposeImportHere(const OtherHosts* others,
                                                            const runtime::JobMemory& memory,
                                                            Coordinator& coordinator,
                                                            const v1::ProposeImportRequest& request,
                                                            absl::Time deadline);

}  // namespace sherd::server

#endif  // SHERD_SERVER_HOST_IMPORTS_H_
