// What trainers and owners record about a step, and what is decided from it (DESIGN.md, the life of a step).
// Plain values; how they lie in shared memory is runtime/job_memory.h's business.
#ifndef SHERD_CORE_STEP_RECORDS_H_
#define SHERD_CORE_STEP_RECORDS_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/exact_sum.h"
#include "core/loss_scale.h"
#include "core/mark.h"
#include "core/types.h"

namespace sherd {

// The numbers of a parameter group that may change from step to step. Names as in torch.optim.
enum ScalarField : int {
  kLr,
  kBeta1,
  kBeta2,
  kEps,
  kWeightDecay,
  kMomentum,
  kDampening,
  kNesterov,  // 0 or 1
  kLrDecay,
  kInitialAccumulatorValue,
  kMinCoeff,
  kMaxCoeff,
  kNsSteps,  // of Muon: Newton-Schulz steps; 0: the group is AdamW's
  kScalarFields,
};
const char* ScalarFieldName(int field);
using GroupScalars = std::array<double, kScalarFields>;

// STEP: a trainer has delivered everything of this step.
struct TrainerStep {
  StepId id;
  uint64_t samples = 0;      // samples this rank computed
  double weight = 0;         // sum over parts of the scale its gradients were delivered with
  double loss = 0;           // mean over this rank's samples
  LossScale loss_scale;      // before this step: its backward used loss_scale.scale
  double max_grad_norm = 0;  // 0: no clipping
  std::vector<GroupScalars> groups;
  std::vector<uint16_t> parts;     // per unit: parts delivered in this step
  std::vector<uint64_t> has_grad;  // bit per tensor: got a gradient in this step
  std::vector<uint64_t> imports;   // values written by hand, to be stored with this step
};

// What the coordinator would like to happen at the next step or boundary: monotone ids, 0 = nothing yet.
struct Proposals {
  uint64_t ranges = 0;    // ranges epoch of the next assignment
  uint64_t snapshot = 0;  // snapshot to cut
  uint64_t import = 0;    // import to store
  void MergeMax(const Proposals& o) {
    ranges = std::max(ranges, o.ranges);
    snapshot = std::max(snapshot, o.snapshot);
    import = std::max(import, o.import);
  }
  bool AnyNewerThan(const Proposals& o) const {
    return ranges > o.ranges || snapshot > o.snapshot || import > o.import;
  }
  friend bool operator==(const Proposals& a, const Proposals& b) {
    return a.ranges == b.ranges && a.snapshot == b.snapshot && a.import == b.import;
  }
};

// PREPARED: every block this owner owns holds its reduced gradient of the step. Written once, never changed.
struct OwnerPrepared {
  StepId id;
  uint64_t ranges_epoch = 0;
  ExactSum sum_squares;  // of the reduced gradients (not yet divided) of this owner's blocks
  Proposals proposals;
  // The owner's host was lost with all that it had of the step, and nobody can have committed it: the owner
  // stands for nothing but that it be computed again. Then whoever prepares says the same, reduced or not.
  bool given_up = false;
};

// BOUNDARY: this owner stands before `before`, has not prepared it, and offers to decide `proposals`.
struct BoundaryOffer {
  StepId before;   // with its attempt: what was offered before an attempt does not stand before the next one
  uint32_t n = 0;  // 1, 2, ... between two steps, over attempts and changes of ranges; 0: none
  uint64_t ranges_epoch = 0;
  Proposals proposals;
};

enum class VerdictKind : uint8_t {
  kCommit = 1,
  kSkip = 2,     // a gradient is not finite: nothing is updated, the step counts
  kReject = 3,   // ranks disagree: nothing happens, the step is computed again (next attempt)
  kGivenUp = 4,  // likewise, as OwnerPrepared::given_up
};
// The next attempt of the same step follows.
inline bool IsRepeated(VerdictKind kind) {
  return kind == VerdictKind::kReject || kind == VerdictKind::kGivenUp;
}

struct Verdict {
  StepId id;
  VerdictKind kind = VerdictKind::kCommit;
  double grad_norm = 0;   // of the mean gradient, before clipping; NaN or inf with kSkip
  double grad_scale = 1;  // factor from reduced sums to the gradient used: 1 / (weight x loss scale) x clip
  double clip = 1;        // the clip factor alone
  double loss = 0;        // mean over all samples of the step
  uint64_t samples = 0;
  LossScale loss_scale;  // what the next step (kReject: the next attempt) uses
  std::vector<GroupScalars> groups;
  std::vector<uint64_t> has_grad;  // union over ranks
  std::vector<uint64_t> imports;   // of trainers, in rank order
  Proposals proposals;             // largest of all; those newer than decided before take effect now
  std::string reason;              // kReject, and kSkip that ends training (loss_scale.floor): one line
};

inline bool TestBit(const std::vector<uint64_t>& bits, int i) { return bits[i >> 6] >> (i & 63) & 1; }
inline void SetBit(std::vector<uint64_t>& bits, int i) { bits[i >> 6] |= uint64_t{1} << (i & 63); }

}  // namespace sherd

#endif  // SHERD_CORE_STEP_RECORDS_H_
