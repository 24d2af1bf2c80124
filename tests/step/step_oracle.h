// What the tests of the step protocol share: a small model, gradients that anyone can compute, a trainer that
// delivers them, and the unsharded model that does the same arithmetic in plain loops, bit for bit, in every
// precision.
#ifndef SHERD_TESTS_STEP_STEP_ORACLE_H_
#define SHERD_TESTS_STEP_STEP_ORACLE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <vector>

#include "core/job_spec.h"
#include "core/loss_scale.h"
#include "core/step_records.h"
#include "tests/step/in_process_job.h"

namespace sherd::tests {

// Four units: tensors of many sizes, a scalar, an empty one, one larger than its neighbours, a frozen one.
JobSpec StepSpec(int world, int stage, int parts, OptimizerKind optimizer = OptimizerKind::kAdamW);
GroupScalars StepScalars();

// What happens in the steps of a run, the same to all.
struct StepPlan {
  int parts = 1;
  double max_norm = 0;
  int absent = -1;               // the tensor without a gradient in step 2
  std::set<uint64_t> overflows;  // steps in which the last rank's gradient holds one infinity
  int virtual_ranks = 0;         // JobSpec::virtual_ranks; then `parts` follows from it and the world
};

// The same arithmetic on one flat array: what one process would hold.
class StepOracle {
 public:
  explicit StepOracle(const JobSpec& spec);
  // Gradients of parts and ranks multiplied by the loss scale, rounded to JobSpec::staging, summed by the
  // job's reduction tree; update, or skip; the next loss scale.
  void Step(uint64_t step, const StepPlan& plan);
  // Ranks of the steps that follow; in the beginning those of the spec.
  void set_world_size(int world_size) { world_size_ = world_size; }

  const std::vector<float>& p() const { return p_; }
  const std::vector<float>& m() const { return m_; }
  // The parameters in JobSpec::compute; empty in fp32.
  const std::vector<uint16_t>& compute() const { return compute_; }
  double norm() const { return norm_; }
  const LossScale& loss_scale() const { return loss_scale_; }

 private:
  // Reduced gradient of a tensor, padded to its blocks.
  std::vector<float> Reduced(uint64_t step, const TensorInfo& t, const StepPlan& plan) const;
  // One tensor by its reduced gradient.
  void Update(const TensorInfo& t, const std::vector<float>& grad, float grad_scale);

  const JobSpec spec_;
  int world_size_;
  std::vector<float> p_, m_, v_;
  std::vector<uint16_t> compute_;
  std::map<int, uint64_t> steps_;
  LossScale loss_scale_;
  double norm_ = 0;
};

// Writes the initial values, as rank 0 would.
void Initialise(InProcessJob& job);

// EXPECTs that the job's memory holds what the oracle does.
void ExpectEqual(InProcessJob& job, const StepOracle& oracle);

// What a trainer does until step `last` is done or a resize lets its rank go; verdicts go to `verdicts` if
// that is not null. A rank past the world joins first. A step that was given up is computed again. `die` is
// asked before each act: true ends the trainer there and then, and leaves everything as it stands.
void Train(
    InProcessJob& job, int rank, uint64_t last, const StepPlan& plan, std::vector<Verdict>* verdicts,
    const std::function<bool()>& die = [] { return false; });

// Initialises, runs all trainers to the end of step `steps`, and EXPECTs what the oracle makes: verdicts,
// norms, loss scales, memory.
void TrainAndCompare(InProcessJob& job, uint64_t steps, const StepPlan& plan);

}  // namespace sherd::tests

#endif  // SHERD_TESTS_STEP_STEP_ORACLE_H_
