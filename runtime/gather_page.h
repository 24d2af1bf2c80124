// What the trainers of one host and its agent say to each other about parameters that are gathered
// (DESIGN.md, several hosts, stage 3): segment `gather`, on a host of several alone. Plain shared memory,
// zero when new.
//
// A trainer stores its UnitWant (RankRecords::Gather) and rings `bell`; the agent brings the unit and stores
// `here`, then rings the trainers. Both sides store before they look, in one order (seq_cst): an agent that
// lets go of a unit clears `here` first and looks at the wants again, so either it sees a new want or the
// trainer sees that the unit is not here.
#ifndef SHERD_RUNTIME_GATHER_PAGE_H_
#define SHERD_RUNTIME_GATHER_PAGE_H_

#include <atomic>
#include <cstdint>

#include "core/job_spec.h"
#include "runtime/control_page.h"
#include "runtime/doorbell.h"

namespace sherd::runtime {

class GatherPage {
 public:
  static int64_t BytesFor(const JobSpec& spec) {
    return sizeof(GatherPage) + static_cast<int64_t>(spec.layout.units().size()) * 8;
  }

  // What a host says of itself.
  enum Said : uint32_t { kInitialized = 1, kShareWritten = 2 };

  DoorbellWord bell;  // for the agent
  // With JobSpec::gather.initial_shares: this host's share of the initial values stands. By a trainer of it.
  std::atomic<uint32_t> share_written;
  // The initial values are in other hands too where they must be: what is not this host's was given back. By
  // the agent.
  std::atomic<uint32_t> given_back;
  // What each other host has said of itself. By the agent.
  std::atomic<uint32_t> said[ControlPage::kHosts];
  // Last request of this host's agents.
  std::atomic<uint64_t> requests;
  // Bytes of gathered parameters that others own, now and at most. By the agent.
  std::atomic<int64_t> bytes, peak_bytes;
  // What keeps the agent from gathering (no room), in words; for whoever has to say what it waits for.
  ControlPage::LinkState trouble;

  // The UnitValues::Of that the unit has; 0: it is not here. By the agent.
  std::atomic<uint64_t>& here(int unit) { return reinterpret_cast<std::atomic<uint64_t>*>(this + 1)[unit]; }
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_GATHER_PAGE_H_
