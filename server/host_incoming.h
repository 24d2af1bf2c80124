// What another host says, put into this host's shared memory: the pages of its ranks and slots, its partial
// sums, its parameters. Rings whoever waits for it.
//
//   HostIncoming incoming(memory, /*peer=*/1);
//   absl::Status s = incoming.Take(link, header);      // its payload, whole
//
// Nothing is believed: places and sizes are checked against the job's layout before a byte is stored, and a
// peer speaks only for its own ranks, slots and shares (the first host also for the control page and the
// initial values). Thread-compatible; Take blocks in Link::ReceiveInto.
#ifndef SHERD_SERVER_HOST_INCOMING_H_
#define SHERD_SERVER_HOST_INCOMING_H_

#include <string>

#include "absl/status/status.h"
#include "runtime/job_memory.h"
#include "runtime/link.h"
#include "server/host_gather.h"

namespace sherd::server {

class HostIncoming {
 public:
  // All are borrowed. Stage 3: `gather` of this host, and where the peer's requests go.
  HostIncoming(runtime::JobMemory* memory, int peer, HostGather* gather = nullptr,
               GatherRequests* requests = nullptr)
      : memory_(memory), peer_(peer), gather_(gather), requests_(requests) {}

  // DATA_LOSS: not what this peer may say; others are the link's. The link is of no use after an error.
  absl::Status Take(runtime::Link& link, const runtime::FrameHeader& header);

 private:
  absl::StatusOr<std::string> Payload(runtime::Link& link, const runtime::FrameHeader& header);
  absl::Status TakeControl(const std::string& payload);
  absl::Status TakeStep(int rank, const std::string& payload);
  absl::Status TakeOwner(int slot, const std::string& payload);
  absl::Status TakeSlice(runtime::Link& link, const runtime::FrameHeader& header);
  absl::Status TakeParameters(runtime::Link& link, const runtime::FrameHeader& header);
  absl::Status TakeNorms(runtime::Link& link, const runtime::FrameHeader& header);
  absl::Status TakeWant(const runtime::FrameHeader& header);
  absl::Status TakeGathered(runtime::Link& link, const runtime::FrameHeader& header);
  absl::Status TakeBuffers(const std::string& payload);
  absl::Status Wrong(const runtime::FrameHeader& header) const;
  void RingOwners();
  void RingTrainers();

  runtime::JobMemory* const memory_;
  const int peer_;
  HostGather* const gather_;
  GatherRequests* const requests_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_HOST_INCOMING_H_
