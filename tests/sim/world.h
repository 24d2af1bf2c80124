// The shared memory of one simulated job (DESIGN.md, where things lie), as plain structs, and what is fixed
// about the job: its layout and what its trainers will compute. A block holds four small integers, so that
// sums are exact in any order.
//
// The actors store to it with a Tick between any two stores; it outlives them all.
#ifndef SHERD_TESTS_SIM_WORLD_H_
#define SHERD_TESTS_SIM_WORLD_H_

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/block_journal.h"
#include "core/epoch_doc.h"
#include "core/partition.h"
#include "core/step_records.h"
#include "tests/sim/scheduler.h"

namespace sherd::sim {

inline constexpr int kElements = 4;
inline constexpr int kMaxSlots = 4;
using Values = std::array<double, kElements>;

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
  kPhaseAgain,          // a successor takes the norms again though its predecessor was PHASED
  kRetireEarly,         // slots are given up before their owners have left the old ranges
  kBugs,
};
const char* BugName(Bug bug);

struct Planes {
  Values param{}, momentum{};
  double updates = 0;  // stands for the tensor's update count; in the block, so that the journal covers it
  friend bool operator==(const Planes& a, const Planes& b) {
    return a.param == b.param && a.momentum == b.momentum && a.updates == b.updates;
  }
};

struct UnitShape {
  BlockRange blocks;
};
struct TensorShape {
  int unit = 0;
  BlockRange blocks;
};

// What a job is, from its seed.
struct Job {
  uint64_t seed = 0;
  int world_size = 1, servers = 1, steps = 4;
  bool ring = false;   // stage 2
  bool norms = false;  // the optimizer updates whole tensors by their norms
  int ring_units = 2;  // of the first ring
  std::vector<UnitShape> units;
  std::vector<TensorShape> tensors;
  int blocks = 0;
  // It moves every few steps. Gradients are what they are; only the verdict divides.
  LossScaleSpec loss_scale{/*dynamic=*/true, /*initial=*/4, /*window=*/1, /*hysteresis=*/2, /*min=*/1};

  static Job FromSeed(uint64_t seed);
  int UnitOf(int block) const;
  int TensorOf(int block) const;

  // What rank r computes in a step, whoever computes it: the same after every restart.
  struct Part {
    int unit = 0;
    bool empty = false;
    double scale = 1;
  };
  TrainerStep Record(Rank rank, StepId id) const;
  std::vector<Part> Parts(Rank rank, StepId id) const;  // in the order in which they are delivered
  bool HasGrad(Rank rank, Step step, int tensor) const;
  double Gradient(Rank rank, Step step, int unit, int part, int block, int element) const;
  uint64_t Blob(Rank rank, StepId id) const;
  // What an import stores in a block: nothing, or one value for each element.
  std::optional<Values> Import(uint64_t import, int block) const;
  // What a block contributes to its tensor's norm, and the factor that a tensor's sum makes of the update.
  static double Norm(const Planes& planes, const Values& grad);
  static double Trust(double sum);

 private:
  uint64_t Hash(uint64_t a, uint64_t b, uint64_t c = 0, uint64_t d = 0, uint64_t e = 0) const;
};

struct Undo {
  JournalSlot apply{}, reduce{};
  Planes planes;
  Values grad{};
  double sumsq = 0;
};

struct OwnerShared {
  std::vector<uint64_t> consumed;  // marks, per unit
  std::optional<OwnerPrepared> prepared;
  BoundaryOffer boundary;
  BoundaryOffer boundary_done[2];  // by parity of n
  StepId done, rejected, phased;
  Proposals decided_by_done[2];  // by parity of the step
  uint64_t entered = 0;
  std::optional<Verdict> verdict;
  std::array<Undo, 2> undo;

  BoundaryOffer BoundaryDone() const {
    const BoundaryOffer &a = boundary_done[0], &b = boundary_done[1];
    return Mark::Of(a.before, a.n) < Mark::Of(b.before, b.n) ? b : a;
  }
  Proposals Decided() const {
    Proposals p = decided_by_done[done.step.value() & 1];
    const BoundaryOffer b = BoundaryDone();
    if (b.n > 0 && b.before.step == done.step.Next()) p.MergeMax(b.proposals);
    return p;
  }
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
  int servers = 0;
  std::optional<Step> from;  // unset: not active
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
  enum Kind { kResize, kSnapshot, kImport } kind = kSnapshot;
  int servers = 0;  // of a resize
  Step from;        // not before this step is done
  bool without_trainers = false;
  bool kill_trainers = false;  // else waits until they left
  bool after_others = false;   // only when all before it is decided
  int delay = 0;               // ticks
  uint64_t due = 0;            // tick; 0: not known yet
  enum State { kPending, kClearing, kProposed } state = kPending;
};

// Everything that a death does not take away.
struct World {
  World(const Job& job, Scheduler* scheduler, Bug bug, bool trace);

  const Job job;
  Scheduler& s;
  const Bug bug;
  const bool trace;

  std::vector<RankShared> ranks;
  std::deque<OwnerShared> owners;  // kMaxSlots
  std::vector<Planes> planes;
  std::vector<Values> grad;
  std::vector<double> sumsq;
  std::vector<double> norms;  // per block
  std::deque<std::atomic<uint64_t>> reduce_stamp, apply_stamp;

  Proposals proposals, boundary;
  std::vector<AssignmentEntry> assignments;
  std::deque<Snapshot> snapshots;
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
  std::array<int, kMaxSlots> server_process;
  std::vector<int> trainer_process;
  std::vector<bool> trainer_finished;
  std::array<int, kMaxSlots> slot_holder;  // fiber that acts, or last acted, in each slot
  int coordinator_process = -1;
  bool settled = false;  // the coordinator has nothing left to do

  // Of the living processes: whom they wait for.
  std::map<int, std::function<std::string()>> waits_for;

  void Tick() { s.Tick(); }
  void Trace(const std::string& line) const;
  [[noreturn]] void Fail(const std::string& what) const { throw Failure{what}; }
  void Check(bool ok, const char* what) const {
    if (!ok) Fail(what);
  }

  // As runtime's control page and job memory.
  std::optional<AssignmentEntry> AssignmentFor(Step step) const;
  std::optional<AssignmentEntry> Newest() const;
  std::optional<AssignmentEntry> BeforeEpoch(uint64_t epoch) const;
  void Activate(uint64_t epoch, Step from);
  StepId LeastDone(const AssignmentEntry& a) const;
  StepId DoneByAll() const;
  bool ConsumedByAll(int unit, Mark mark, StepId current) const;
};

}  // namespace sherd::sim

#endif  // SHERD_TESTS_SIM_WORLD_H_
