// Whether the copies of a job's state that its groups of hosts hold (core/host_map.h, HostGrid) are the same
// bits: a bit that flipped in one host's memory is named by tensor, plane and element.
//
//   absl::StatusOr<v1::CompareCopiesResponse> r =
//       CompareCopies(others, memory, snapshots, request.token(), deadline, go_on);
//
// All hosts sum what they own of one snapshot. Where sums differ, those who hold the piece sum smaller pieces
// of it, down to single elements. Nothing but sums travels. Thread-safe; calls block.
#ifndef SHERD_SERVER_STATE_COPIES_H_
#define SHERD_SERVER_STATE_COPIES_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "runtime/job_memory.h"
#include "server/other_hosts.h"
#include "server/snapshots.h"

namespace sherd::server {

// A piece of a plane of a tensor.
struct StatePart {
  const TensorInfo* tensor = nullptr;
  int plane = 0;
  int64_t begin = 0, end = 0;  // elements of the flattened tensor
};

// What `host` owns, in pieces of at most so many elements: the same for each host that holds the same share.
std::vector<StatePart> PartsOf(const runtime::JobMemory& memory, int host, int64_t most_elements);

// Which of the hosts differ from the sum that more than half of them have; all, if no sum has. Empty: none
// differs. REQUIRES: as many sums as hosts.
std::vector<int> Apart(const std::vector<int>& hosts, const std::vector<uint32_t>& sums);

// The calls of CheckpointService with these names; errors as there. `go_on` is asked now and then; CANCELLED
// once it is false. `others`: null in a job of one host.
absl::StatusOr<v1::CompareCopiesResponse> CompareCopies(const OtherHosts* others, runtime::JobMemory& memory,
                                                        Snapshots& snapshots, const std::string& token,
                                                        absl::Time deadline,
                                                        const std::function<bool()>& go_on);
absl::StatusOr<v1::SumShareResponse> SumShareHere(runtime::JobMemory& memory,
                                                  const v1::SumShareRequest& request,
                                                  const std::function<bool()>& go_on);

}  // namespace sherd::server

#endif  // SHERD_SERVER_STATE_COPIES_H_
