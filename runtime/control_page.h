// The control page of one job: what concerns all its processes (DESIGN.md, where things lie). Plain shared
// memory, zero when new.
//
// Words that several processes may write are written with the same value by all of them, or by one writer at
// a time (the coordinator); which, is said at each. Thread-safe through its atomics.
#ifndef SHERD_RUNTIME_CONTROL_PAGE_H_
#define SHERD_RUNTIME_CONTROL_PAGE_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "core/host_map.h"
#include "core/step_records.h"
#include "runtime/doorbell.h"
#include "runtime/process_identity.h"
#include "runtime/records.h"

namespace sherd::runtime {

// Who stands in a place (rank or slot). Written by the coordinator before the member may act.
struct MemberEntry {
  enum State : uint32_t { kVacant = 0, kAttached = 1, kFinished = 2, kDead = 3 };
  std::atomic<uint64_t> incarnation;
  std::atomic<uint64_t> start_ticks;
  std::atomic<int32_t> pid;
  std::atomic<uint32_t> state;
  // Of a trainer that is to join: its incarnation, once it has mapped everything and waits to be taken in.
  // Written by that trainer.
  std::atomic<uint64_t> ready;
  uint64_t unused[4];
  DoorbellWord bell;  // rung for this member

  ProcessIdentity identity() const {
    return {pid.load(std::memory_order_acquire), start_ticks.load(std::memory_order_acquire)};
  }
  // Without the bell, for another host's page.
  struct Copy {
    uint64_t incarnation, start_ticks;
    int32_t pid;
    uint32_t state;
  };
  Copy Read() const {
    return {incarnation.load(std::memory_order_acquire), start_ticks.load(std::memory_order_acquire),
            pid.load(std::memory_order_acquire), state.load(std::memory_order_acquire)};
  }
  void Put(const Copy& c) { Set({c.pid, c.start_ticks}, c.incarnation, static_cast<State>(c.state)); }
  void Set(const ProcessIdentity& who, uint64_t life, State s) {
    start_ticks.store(who.start_ticks, std::memory_order_relaxed);
    incarnation.store(life, std::memory_order_relaxed);
    pid.store(who.pid, std::memory_order_release);
    state.store(s, std::memory_order_release);
  }
};

// Who owns what from which step on.
struct Assignment {
  uint64_t epoch = 0;  // ranges epoch
  Step from_step;
  HostMap hosts = HostMap::OneHost(1);  // who of the slots is where
  int servers = 0;                      // hosts.servers()
  int world_size = 0;                   // ranks whose gradients make up a step
  Step not_before;                      // from_step is not earlier
};

// Monotone proposal words (core/step_records.h). Written by the coordinator.
struct ProposalWordsShared {
  std::atomic<uint64_t> ranges, snapshot, import;
  Proposals Read() const {
    return {ranges.load(std::memory_order_acquire), snapshot.load(std::memory_order_acquire),
            import.load(std::memory_order_acquire)};
  }
};

// An open snapshot. The coordinator fills in everything but `cut_plus_1` and sets `id` last, before it
// proposes it; frees by id = 0.
struct SnapshotEntry {
  std::atomic<uint64_t> id;
  // 1 + the step after which it is cut; 0: not decided. Written by owners, all the same value.
  std::atomic<uint64_t> cut_plus_1;
  std::atomic<uint64_t> plane_mask;   // bit 0: param, bit 1+i: optimizer plane i
  std::atomic<uint64_t> pool_blocks;  // capacity
  std::atomic<uint64_t> used;         // pool blocks taken (by owners)
  std::atomic<uint32_t> overflowed;   // a block found no room (owners): the snapshot is lost
  std::atomic<uint32_t> wait_when_full;
  std::atomic<int64_t> expires_ns;  // CLOCK_MONOTONIC; whoever reads the snapshot sets it to now + idle_ns
  std::atomic<int64_t> idle_ns;
  std::atomic<uint64_t> not_before;  // not cut before this step is stored, whatever is decided
  char token[64];
};

class ControlPage {
 public:
  static constexpr int kSnapshots = 16;
  static constexpr int kAssignments = 64;

  // Sizes, for a check when opening. The world is that with which the job began: see Assignment.
  uint64_t layout_hash;
  int32_t world_size;
  int32_t stage;
  // Ranks that have pages: those of every world so far and those that are joining. Only grows; coordinator.
  std::atomic<int32_t> places;
  // Which of the job's hosts this page stands on, and how many there are; 0 hosts: one.
  int32_t host_index;
  int32_t host_count;
  int32_t shard_hosts;  // HostGrid::group of the job; 0: all

  std::atomic<uint32_t> initialized;  // the initial values are whole; coordinator, once
  std::atomic<uint32_t> shutting_down;
  // By import id, modulo: the step after which it was stored. Written by owners before they are DONE with it,
  // all the same.
  static constexpr int kImportSteps = 64;  // as many as the coordinator remembers tokens
  std::atomic<uint64_t> import_steps[kImportSteps];
  // One more with each coordinator and with each import that one gave up: what was named under a smaller one
  // and is not proposed never will be. Coordinator.
  std::atomic<uint64_t> import_generation;
  std::atomic<uint64_t> epoch;    // of the newest epoch document; coordinator
  ProposalWordsShared proposals;  // for verdicts
  ProposalWordsShared boundary;   // for boundaries without trainers; never ahead of `proposals`

  // Rung at each DONE, boundary, attach, detach: for the coordinator and for whoever waits for a decision.
  DoorbellWord bell;
  // In a job of several hosts: rung with whatever other hosts have to learn, for the agent that tells them;
  // and how many agents this host has had.
  DoorbellWord link_bell;
  std::atomic<uint64_t> agent_incarnation;
  // This host's memory is what the job begins with, but for what the first host sends: its agent may be at
  // work. By whoever makes it so.
  std::atomic<uint32_t> host_begun;
  // How this host's connection to another one is; by its agent, for whoever has to say what it waits for.
  // Words are read without order.
  struct LinkState {
    enum State : uint32_t { kNever = 0, kUp = 1, kSilent = 2, kDown = 3 };
    std::atomic<uint32_t> state;
    char words[124];
    // The least incarnation that an agent of that host may have: raised when another host takes its place, by
    // whoever is told so. And up to where this host's agent has made sure that no other is listened to.
    std::atomic<uint64_t> oldest, fenced;
    // The step, as a mark, of which nothing more comes from a lost host (StepPipeline::OnCut).
    std::atomic<uint64_t> cut;
    void Set(State s, absl::string_view text);
    std::string Words() const;
  };
  static constexpr int kHosts = 64;
  LinkState links[kHosts];
  // What is wrong with any link, or with that to one host, in words; empty: nothing.
  std::string LinkProblem() const;
  std::string LinkProblem(int host) const;
  SnapshotEntry snapshots[kSnapshots];
  MemberEntry servers[kMaxSlots];

  // Writes the assignment of ranges epoch `epoch`. `from` is not known before it is decided: see Activate.
  // Coordinator. REQUIRES: hosts.servers() <= kMaxSlots.
  void PutAssignment(uint64_t epoch, const HostMap& hosts, int world_size, Step not_before = Step(0));
  // The assignment takes effect at `from`. Any owner, all with the same values.
  void Activate(uint64_t epoch, Step from);
  // The assignment in force for a step: the newest active one with from_step <= step. nullopt before the
  // first.
  std::optional<Assignment> AssignmentFor(Step step) const;
  // Its epoch alone: a few loads, for those who look at every unit whether it is still the one they know.
  std::optional<uint64_t> EpochFor(Step step) const;
  // The newest active one that is older than `epoch`.
  std::optional<Assignment> Before(uint64_t epoch) const;
  // The newest active one.
  std::optional<Assignment> Newest() const;
  // The one of this epoch, active (then with from_step) or only proposed.
  std::optional<Assignment> Find(uint64_t epoch) const;
  // Whether the assignment of that epoch may take effect at `step`.
  bool MayBegin(uint64_t epoch, Step step) const;

  // What the coordinator and the owners of the first host say here, for the page of another host. Put leaves
  // alone what is of that host alone: bells, places, snapshots. False: damaged.
  std::string Copy() const;
  bool Put(absl::string_view copy);

 private:
  struct PageCopy;
  struct AssignmentEntry {
    std::atomic<uint64_t> epoch;
    std::atomic<uint64_t> from_plus_1;  // 0: not active
    std::atomic<int32_t> servers;
    std::atomic<int32_t> world_size;
    std::atomic<uint64_t> not_before;
    std::atomic<uint8_t> host_of[kMaxSlots];
  };
  HostMap HostsOf(const AssignmentEntry& e) const;
  Assignment Read(const AssignmentEntry& e, uint64_t epoch, uint64_t from_plus_1) const;
  struct Active {
    const AssignmentEntry* entry = nullptr;
    uint64_t epoch = 0, from_plus_1 = 0;
  };
  std::optional<Assignment> Read(const Active& a) const;
  template <typename Take>
  Active NewestThat(Take take) const;
  AssignmentEntry& At(uint64_t epoch) { return assignments_[epoch % kAssignments]; }
  AssignmentEntry assignments_[kAssignments];
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_CONTROL_PAGE_H_
