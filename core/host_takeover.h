// How a host that lost its memory with all its processes is followed by another one, in a job whose blocks
// have owners in several groups of hosts (core/host_map.h): nothing that was decided is lost, and nothing is
// decided twice. Pure; server/host_takeover.h carries it out.
//
// The successor has nothing. Before it does anything all others have cut the lost host off, so that no record
// of it reaches them any more, and have said what they have of it (Survivor). Then one of these holds:
//
// - Together they have PREPARED of all its owners for the step in hand: one of them may have decided it.
//   All are told the lost host's records (kTell), and finish the step; or one of them lacks a sum of the
//   lost host, so that nobody can have decided, and gives the step up by itself (StepPipeline::OnCut).
// - They do not stand at the same boundary, or all lost owners have offered the next one: likewise.
// - Of an owner nobody has PREPARED. Nobody has decided the step, nor ever will: the successor gives it
//   up in the name of that owner (kGiveUp, OwnerPrepared::given_up), and all compute it again.
//
// After that the planes of the counterpart in another group stand still, since no step ends without the
// successor: it copies what it owns from there, and goes on where that stands. What it says itself may be
// lost with it: the next one finds that at the survivors, like what its predecessor said.
//
// Thread-safe.
#ifndef SHERD_CORE_HOST_TAKEOVER_H_
#define SHERD_CORE_HOST_TAKEOVER_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "core/mark.h"

namespace sherd {

// How far an owner has come, by its page.
struct OwnerProgress {
  StepId done;
  StepId rejected;                 // {0, 0}: none
  std::optional<StepId> prepared;  // of the newest ranges
  Mark offered;                    // the last boundary offered: (before, n)
  Mark boundary_done;              // the last boundary carried out
  // The step that it has in hand.
  StepId InHand() const;
};

struct Survivor {
  std::vector<OwnerProgress> own;   // of this host, at least one
  std::vector<OwnerProgress> lost;  // of the lost host, by its slots in order, as this host has them
};

struct Takeover {
  enum Kind { kTell, kGiveUp };
  Kind kind = kGiveUp;
  StepId in_hand;                  // the earliest that a survivor has in hand
  std::vector<bool> has_prepared;  // per lost slot: of in_hand, by a survivor
};

// REQUIRES: survivors is not empty, and all have as many lost owners.
Takeover PlanTakeover(const std::vector<Survivor>& survivors);

}  // namespace sherd

#endif  // SHERD_CORE_HOST_TAKEOVER_H_
