// What the agents of two hosts say to each other over runtime/link.h (DESIGN.md, several hosts).
//
// Everything that is said stands in shared memory here and may be said again: a frame that the other side has
// already changes nothing.
#ifndef SHERD_SERVER_HOST_FRAMES_H_
#define SHERD_SERVER_HOST_FRAMES_H_

#include <atomic>
#include <cstdint>

#include "runtime/gather_page.h"

namespace sherd::server {

enum class HostFrame : uint16_t {
  kHello = 1,       // first, from both, and again when it has changed. flags: kInitialized, kShareWritten
  kControl = 2,     // of the first host: ControlPage::Copy, then MemberEntry::Copy of each rank
  kStep = 3,        // stream: rank. RankRecords::CopyStep
  kOwner = 4,       // stream: slot. OwnerRecords::Copy; behind the parameters that it says are stored
  kSlice = 5,       // stream: unit; mark. offset: of the inbox. flags: kNothing, then there is no payload
  kParameters = 6,  // stream: HostPlane. offset: of the plane
  kBuffers = 7,     // rank 0's buffers before the first step
  kWant = 8,        // stream: unit; mark: a request. For the parameters that the receiver owns of the unit
  kGathered = 9,    // stream: unit; mark: the request. offset: of the plane. flags: kOfCompute, kLast
  kNorms = 10,      // stream: unit. offset: of JobMemory::block_norms; before the PHASED that speaks of them
};

// Of one block, in kNorms.
inline constexpr int64_t kNormBytes = 2 * sizeof(double);

enum HostPlane : uint32_t { kMasters = 0, kCompute = 1 };

// Of kHello, as GatherPage::said keeps them: the initial values are here; with
// JobSpec::gather.initial_shares, so is this host's share.
inline constexpr uint16_t kInitialized = runtime::GatherPage::kInitialized;
inline constexpr uint16_t kShareWritten = runtime::GatherPage::kShareWritten;
inline constexpr uint16_t kOfCompute = 1;  // of kGathered: of the rounded copy, not of the masters
inline constexpr uint16_t kLast = 2;       // nothing more comes for this request
inline constexpr uint16_t kNothing = 1;    // of kSlice: no rank of this host contributed

// Payload bytes sent to one host, by kind. Read from any thread.
struct HostBytes {
  std::atomic<uint64_t> gradients{0}, parameters{0}, gathers{0}, records{0};
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_HOST_FRAMES_H_
