// The unsharded model: applies every committed step to planes of its own, once, in order, and knows what all
// verdicts must have been. What the sharded world does is held against it.
#ifndef SHERD_TESTS_SIM_ORACLE_H_
#define SHERD_TESTS_SIM_ORACLE_H_

#include <functional>
#include <map>
#include <vector>

#include "tests/sim/world.h"

namespace sherd::sim {

class Oracle {
 public:
  explicit Oracle(const Job& job);

  // An owner has decided a step (or boundary) that stood before it as `decided`. The first to say so moves
  // the model; the others must say the same. Throws Failure.
  void OnVerdict(const Verdict& v, const Proposals& decided);
  void OnBoundary(StepId before, uint32_t n, const Proposals& decision, const Proposals& decided);

  // How many ranks the assignment of that name has. Set before anything is decided.
  std::function<int(uint64_t ranges)> world_of = [this](uint64_t) { return job_.world_size; };

  // The step and attempt that is to be decided next, and how many ranks compute it.
  StepId next() const { return next_; }
  int world_size() const { return world_of(decided_.ranges); }

  // After the last thing decided.
  const std::vector<Planes>& planes() const { return planes_; }
  const std::vector<uint64_t>& stamps() const { return stamps_; }
  const Proposals& decided() const { return decided_; }
  StepId done() const { return done_; }
  // The attempt in which a step was decided. REQUIRES: it was.
  StepId Committed(Step step) const { return committed_[step.value() - 1]; }
  // What a snapshot must contain; nullptr: not cut yet.
  const std::vector<Planes>* SnapshotOf(uint64_t id) const;
  const std::vector<Planes>& After(Step step) const { return after_[step.value()]; }

 private:
  void AddUp(StepId id, std::vector<Values>* sums) const;
  Verdict Expected(StepId id, std::vector<Values>* sums) const;
  void Take(const Proposals& decision);
  void Store(uint64_t import);

  const Job& job_;
  std::vector<Planes> planes_;
  std::vector<uint64_t> stamps_;
  StepId done_;
  StepId next_{Step(1), 0};
  LossScale loss_scale_;  // of next_
  Proposals decided_;
  std::vector<StepId> committed_;
  std::vector<std::vector<Planes>> after_;  // per step; the boundaries after it included
  std::map<uint64_t, std::vector<Planes>> snapshots_;
  std::map<uint64_t, std::pair<Verdict, Proposals>> verdicts_;  // by mark
  std::map<uint64_t, std::pair<Proposals, Proposals>> boundaries_;
};

}  // namespace sherd::sim

#endif  // SHERD_TESTS_SIM_ORACLE_H_
