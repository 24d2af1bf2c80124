// What one host has to tell another, found in shared memory and sent in the order in which it became true.
//
//   HostOutgoing outgoing(memory, /*peer=*/1, &bytes);
//   outgoing.Begin(peer_is_initialized);            // a new connection: everything is said anew
//   StatusOr<bool> more = outgoing.Pass(link);      // sends what is new; false: nothing was
//
// A pass compares marks and copies only records that changed; sums and parameters go from their segments.
//
// Order. An owner's record goes behind the parameters of the units that it says are stored; the word that the
// initial values are whole goes behind them. So what the other host reads there, it may rely on.
//
// In stage 3 also what this host has to ask for, and the answers to what the peer asked over this connection.
//
// Thread-compatible; Pass blocks in Link::Send.
#ifndef SHERD_SERVER_HOST_OUTGOING_H_
#define SHERD_SERVER_HOST_OUTGOING_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/job_memory.h"
#include "runtime/link.h"
#include "server/host_frames.h"
#include "server/host_gather.h"

namespace sherd::server {

// What this host's kHello says.
uint16_t HelloFlags(const runtime::JobMemory& memory);

class HostOutgoing {
 public:
  // All are borrowed. Stage 3: `gather` of this host, and what the peer asks for over this connection.
  HostOutgoing(runtime::JobMemory* memory, int peer, HostBytes* bytes, const HostGather* gather = nullptr,
               GatherRequests* requests = nullptr);

  void Begin(bool peer_initialized);
  absl::StatusOr<bool> Pass(runtime::Link& link);

 private:
  // A slot of this host in the assignment in force.
  struct Owner {
    int slot;
    runtime::OwnerRecords* records;
    runtime::OwnerRecords::Marks marks{};
    std::string consumed;            // as last sent, where they are sent
    StepId phased;                   // whose norms were sent last
    std::vector<BlockRange> norms;   // per unit, own, of those that have norms
    std::vector<uint64_t> changed;   // per unit, as last sent
    std::vector<BlockRange> blocks;  // per unit, own
    std::vector<bool> slices;        // per unit: sums something for other hosts
  };
  absl::Status FollowAssignment();
  absl::Status SendInitialValues(runtime::Link& link);
  absl::StatusOr<bool> SendSlices(runtime::Link& link);
  absl::StatusOr<bool> SendSteps(runtime::Link& link);
  absl::StatusOr<bool> SendOwner(runtime::Link& link, Owner& owner);
  absl::Status SendNorms(runtime::Link& link, Owner& owner);
  absl::StatusOr<bool> SendControl(runtime::Link& link);
  absl::StatusOr<bool> SendGathers(runtime::Link& link);
  absl::StatusOr<bool> SendWants(runtime::Link& link);
  absl::Status SendGathered(runtime::Link& link, const GatherRequests::Request& request);
  absl::Status SendBlocks(runtime::Link& link, uint32_t plane, BlockRange blocks);
  // Of the planes that trainers read.
  absl::Status SendValues(runtime::Link& link, BlockRange blocks);
  absl::Status Send(runtime::Link& link, runtime::FrameHeader header, HostFrame type, const void* payload,
                    uint64_t length, std::atomic<uint64_t>* count);

  runtime::JobMemory* const memory_;
  const int peer_;
  HostBytes* const bytes_;
  const HostGather* const gather_;
  GatherRequests* const requests_;
  uint16_t said_ = 0;            // flags of the last kHello
  std::vector<uint64_t> asked_;  // per unit: request as last sent
  bool peer_initialized_ = false;
  uint64_t epoch_ = 0;  // of the assignment that owners_ is of
  std::vector<Owner> owners_;
  std::vector<BlockRange> shares_;              // per unit: what the peer owns of it
  std::vector<uint64_t> sliced_;                // per unit: mark as last sent
  std::vector<std::array<uint64_t, 2>> steps_;  // per own rank: marks as last sent
  std::string control_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_HOST_OUTGOING_H_
