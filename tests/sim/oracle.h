// The unsharded model: applies every committed step to planes of its own, once, in order, and knows what all
// verdicts must have been. What the sharded world does is held against it.
#ifndef SHERD_TESTS_SIM_ORACLE_H_
#define SHERD_TESTS_SIM_ORACLE_H_

#include <functional>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "tests/sim/world.h"

namespace sherd::sim {

class Oracle {
 public:
  explicit Oracle(const Job& job);

  // An owner has decided a step (or boundary) that stood before it as `decided`. The first to say so moves
  // the model; the others must say the same. Throws Failure.
  // `host`: the owner's.
  void OnVerdict(int host, const Verdict& v, const Proposals& decided);
  void OnBoundary(int host, StepId before, uint32_t n, const Proposals& decision, const Proposals& decided);
  // The host is gone with its memory: what it alone had decided, which nobody can have seen, was not.
  void Forget(int host);

  // How many ranks the assignment of that name has. Set before anything is decided.
  std::function<int(uint64_t ranges)> world_of = [this](uint64_t) { return job_.world_size; };

  // The step and attempt that is to be decided next, and how many ranks compute it.
  StepId next() const { return now_.next; }
  int world_size() const { return world_of(now_.decided.ranges); }

  // After the last thing decided.
  const std::vector<Planes>& planes() const { return now_.planes; }
  const std::vector<uint64_t>& stamps() const { return now_.stamps; }
  const Proposals& decided() const { return now_.decided; }
  StepId done() const { return now_.done; }
  // The attempt in which a step was decided. REQUIRES: it was.
  StepId Committed(Step step) const { return now_.committed[step.value() - 1]; }
  // What a snapshot must contain; nullptr: not cut yet.
  const std::vector<Planes>* SnapshotOf(uint64_t id) const;
  const std::vector<Planes>& After(Step step) const { return now_.after[step.value()]; }

 private:
  void AddUp(StepId id, std::vector<Values>* sums) const;
  Verdict Expected(StepId id, std::vector<Values>* sums) const;
  void Take(const Proposals& decision);
  void Store(uint64_t import);

  struct State {
    std::vector<Planes> planes;
    std::vector<uint64_t> stamps;
    StepId done;
    StepId next{Step(1), 0};
    LossScale loss_scale;  // of next
    Proposals decided;
    std::vector<StepId> committed;
    std::vector<std::vector<Planes>> after;  // per step; the boundaries after it included
    std::map<uint64_t, std::vector<Planes>> snapshots;
    std::map<uint64_t, std::pair<Verdict, Proposals>> verdicts;  // by mark
    std::map<uint64_t, std::pair<Proposals, Proposals>> boundaries;
  };
  // A verdict or a boundary by `host`, which may be the first to decide it.
  void Note(int host, const std::pair<uint64_t, bool>& what, bool first);

  const Job& job_;
  State now_, before_;                        // before the last decision
  std::pair<uint64_t, bool> last_{0, false};  // that decision
  std::set<int> last_by_;                     // hosts that have made it
};

}  // namespace sherd::sim

#endif  // SHERD_TESTS_SIM_ORACLE_H_
