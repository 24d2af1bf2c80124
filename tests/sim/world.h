// The shared memory of one simulated job (DESIGN.md, where things lie), as plain structs, one on each host,
// and the connections between hosts.
//
// The actors store to it with a Tick between any two stores; it outlives them all.
#ifndef SHERD_TESTS_SIM_WORLD_H_
#define SHERD_TESTS_SIM_WORLD_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/block_journal.h"
#include "core/epoch_doc.h"
#include "core/host_map.h"
#include "core/step_records.h"
#include "tests/sim/job.h"
#include "tests/sim/scheduler.h"

namespace sherd::sim {

// Mistakes that a run may be asked to make. The simulation is worth something because it finds each.
enum class Bug {
  kNone,
  kStampBeforeMutate,
  kNoUndoOnRecovery,
  kRewritePrepared,     // a successor does not look at its predecessor's PREPARED
  kPrepareEarly,        // PREPARED when all that was delivered is reduced, STEP or not
  kOverwriteStaging,    // a trainer does not wait for CONSUMED
  kIndexAfterMutation,  // a snapshot's index is set after its block has changed
  kAdoptAlive,          // a slot is given to a successor while its owner is merely stopped
  kImportTwice,         // a boundary does not record the import it stored
  kDecidedNotRecorded,  // nor DONE the proposals of its verdict
  kWrongStart,          // a slot that a resize lets in starts where it once stood
  kNoBarrier,           // owners take up new ranges one by one
  kNextAttemptEarly,    // trainers begin again at the first REJECTED
  kPhasedEarly,         // PHASED is published before the norms are there
  kCountedTwice,        // owners of every group of hosts count their blocks for the norm
  kMoveTwice,           // a successor moves blocks again that its predecessor moved before PHASED
  kKeepNoGradient,      // what a block's gradient was is not kept while it turns into a direction
  kRetireEarly,         // slots are given up before their owners have left the old ranges
  kDoneBeforeBlocks,    // an agent sends records before what they stand for
  kOverwriteOutbox,     // a slice is overwritten before it was consumed
  kMarkBeforeSlice,     // an agent stores RECEIVED before the slice
  kOldSlice,            // a slice of an earlier attempt counts
  kGiveUpInTwo,         // REJECTED, then BOUNDARY_DONE, of a boundary that gives a step up
  kKeepAttempt,         // a step goes on where a boundary has changed its ranks
  kOldWorld,            // owners sum over the ranks of the assignment before
  kNeverGiveUp,         // a trainer waits on in a step that was given up
  kOldShare,            // a step that was given up begins again before its new ranks are in force
  kOwnBlob,             // a rank that joins takes what it committed when it was there before
  kLateSave,            // an element changes before the undo buffer has it
  kApplyTwice,          // a successor applies a step again to blocks that are stamped with it
  kVerdictEarly,        // a verdict before all owners are PREPARED
  kOffByOnePlan,        // an owner takes its range to end one block earlier
  kSkipFence,           // a rank is given to a successor while its trainer is merely stopped
  kTwoCoordinators,     // a coordinator takes over from one that is merely stopped
  kPoolsLate,           // a snapshot is proposed before it stands on every host
  kCutAtSight,          // owners cut what they see proposed with the step in hand, decided or not
  kGiveUpDecided,       // who follows a lost host gives a step up that another host may have decided
  kCopyOldShare,        // it goes on from the counterpart's state though others have yet to finish the step
  kBugs,
};
const char* BugName(Bug bug);

struct Undo {
  JournalSlot apply{}, reduce{};
  Planes planes;
  Values grad{};
  double sumsq = 0;
};

// Of an owner's page: what is mirrored.
struct OwnerRecords {
  std::vector<uint64_t> consumed, sliced;  // marks, per unit
  std::optional<OwnerPrepared> prepared;
  BoundaryOffer boundary;
  BoundaryOffer boundary_done[2];  // by parity of n
  StepId done, rejected, phased;
  Proposals decided_by_done[2];  // by parity of the step
  uint64_t entered = 0;
  std::optional<Verdict> verdict;

  BoundaryOffer BoundaryDone() const {
    const BoundaryOffer &a = boundary_done[0], &b = boundary_done[1];
    return Mark::Of(a.before, a.n) < Mark::Of(b.before, b.n) ? b : a;
  }
  // A boundary carried out before an attempt rejects the one before it.
  StepId Rejected() const {
    const StepId before = BoundaryDone().before;
    if (before.attempt == 0) return rejected;
    return std::max(rejected, StepId{before.step, static_cast<uint8_t>(before.attempt - 1)});
  }
  Proposals Decided() const {
    Proposals p = decided_by_done[done.step.value() & 1];
    const BoundaryOffer b = BoundaryDone();
    if (b.n > 0 && b.before.step == done.step.Next()) p.MergeMax(b.proposals);
    return p;
  }
};

struct OwnerShared : OwnerRecords {
  std::array<Undo, 2> undo;
};

struct RankShared {
  struct Delivery {
    uint64_t mark = 0;
    int location = -1;  // in staging, a unit's worth; -1: empty
    double scale = 1;
  };
  std::vector<Delivery> delivered;  // per unit
  std::optional<TrainerStep> step[2];
  uint64_t blob[2] = {0, 0};
  std::vector<std::vector<Values>> staging;  // per location, a unit's blocks
};

struct AssignmentEntry {
  uint64_t epoch = 0;
  HostMap hosts = HostMap::OneHost(1);
  std::optional<Step> from;  // unset: not active
  int world_size = 1;
  int servers() const { return hosts.servers(); }
};

struct Snapshot {
  uint64_t id = 0;
  std::optional<Step> cut;
  bool released = false, read = false;
  std::vector<int> index;  // per block, in the pool; -1: the live block is still whole
  std::vector<Planes> pool;
};

// Something the coordinator is to bring about.
struct Operation {
  enum Kind { kResize, kSnapshot, kImport, kTrainers } kind = kSnapshot;
  int servers = 0;            // of a resize
  int trainers = 0;           // of one of trainers
  bool give_up_step = false;  // which does not wait for the step in hand
  Step from;                  // not before this step is done
  bool without_trainers = false;
  bool kill_trainers = false;  // else waits until they left
  bool after_others = false;   // only when all before it is decided
  int delay = 0;               // ticks
  uint64_t due = 0;            // tick; 0: not known yet
  enum State { kPending, kClearing, kProposed } state = kPending;
  uint64_t patience = 0;  // tick at which trainers that have not left are killed; 0: nobody waits for them
};

// Partial sums of another host's ranks, per unit, and how far they have come.
struct Inbox {
  uint64_t received = 0;       // a mark
  std::vector<Values> blocks;  // of the unit
};

// What stands in the shared memory of one host. Pages of ranks and slots of other hosts are mirrors, which
// the host's agent writes; so are the parameters that other hosts own.
struct HostMemory {
  HostMemory(const Job& job, int host);

  const Job* job;
  const int host;
  std::vector<RankShared> ranks;
  std::deque<OwnerShared> owners;  // kMaxSlots
  std::vector<Planes> planes;
  std::vector<Values> grad;
  std::vector<double> sumsq;
  std::vector<double> norms;  // per block
  std::deque<std::atomic<uint64_t>> reduce_stamp, apply_stamp;
  std::vector<Values> outbox;             // per block that another host owns
  std::vector<std::vector<Inbox>> inbox;  // by host and unit

  // The memory is gone; the control page comes from `first` again.
  void Lose(const HostMemory& first);

  std::vector<uint64_t> cut;  // by host: the step, as a mark, of which nothing more comes from a lost one
  Proposals proposals, boundary;
  std::vector<AssignmentEntry> assignments;
  std::deque<Snapshot> snapshots;

  // As runtime's control page and job memory.
  std::optional<AssignmentEntry> AssignmentFor(Step step) const;
  std::optional<AssignmentEntry> Newest() const;
  std::optional<AssignmentEntry> BeforeEpoch(uint64_t epoch) const;
  void Activate(uint64_t epoch, Step from);
  StepId LeastDone(const AssignmentEntry& a) const;
  StepId DoneByAll() const;
  // What a rank of this host delivered is needed no more: by owners here, nor by slots that sum it for
  // others.
  bool ConsumedByAll(int unit, Mark mark, StepId current) const;
  // Every owner has carried out `goal`.
  bool Settled(const Proposals& goal) const;
};

// What goes over a connection: carried out at the other end, by its agent, in order.
struct Message {
  uint64_t ready_at = 0;  // tick
  std::function<void(HostMemory&)> put;
  std::vector<uint64_t> received;  // instead: how far the sender's inbox of the receiver's host has come
};

// Between two hosts, the one with the lower index first.
struct Link {
  uint64_t id = 0;  // of the connection; 0: there never was one
  bool up = false;
  std::deque<Message> queue[2];  // to the second; to the first
};

// Everything that a death does not take away.
struct World {
  World(const Job& job, Scheduler* scheduler, Bug bug, bool trace);

  const Job job;
  Scheduler& s;
  const Bug bug;
  const bool trace;

  std::deque<HostMemory> memory;  // by host; the coordinator's is the first
  std::map<std::pair<int, int>, Link> links;
  std::vector<Operation> operations;

  // The store of epoch documents; a process' pid is its fiber + 1.
  std::vector<EpochDoc> epochs;
  ProcessIdentity Identity(int fiber) const { return {fiber + 1, 1}; }
  bool Alive(const ProcessIdentity& p) const { return p.pid > 0 && s.Alive(static_cast<int>(p.pid) - 1); }

  // All processes that ever were, and the newest of each server id and rank.
  struct Process {
    int fiber = -1;
    bool server = false;
    int key = 0;  // of the id s<key>, or the rank
  };
  std::vector<Process> processes;
  std::vector<int> server_process;  // of s0, s1, ...
  std::vector<int> agent_process;   // by host
  std::vector<int> putting;    // by host: from which other one its agent puts something in place; -1: none
  std::vector<bool> lost;      // by host: nobody is to be started there
  std::vector<bool> replaced;  // it was lost once
  std::vector<int> trainer_process;
  std::vector<bool> trainer_finished;
  std::vector<int> trainer_ready;  // the process of each rank that has said last that it is ready to join
  std::array<int, kMaxSlots> slot_holder;  // fiber that acts, or last acted, in each slot
  int coordinator_process = -1;
  int WantedTrainers() const { return epochs.empty() ? job.world_size : epochs.back().wanted_trainers(); }
  // The operation that is to be begun next; null: none is left.
  const Operation* NextOperation() const;
  bool settled = false;  // the coordinator has nothing left to do

  // Of the living processes: whom they wait for.
  std::map<int, std::function<std::string()>> waits_for;

  void Tick() { s.Tick(); }
  void Trace(const std::string& line) const;
  [[noreturn]] void Fail(const std::string& what) const { throw Failure{what}; }
  void Check(bool ok, const char* what) const {
    if (!ok) Fail(what);
  }
};

}  // namespace sherd::sim

#endif  // SHERD_TESTS_SIM_WORLD_H_
