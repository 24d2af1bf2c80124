// The verdict on a step, as a pure function of its records: any owner, and any owner's successor, computes
// the same.
#ifndef SHERD_CORE_VERDICT_H_
#define SHERD_CORE_VERDICT_H_

#include <vector>

#include "core/step_records.h"

namespace sherd {

// REQUIRES: steps of all ranks in rank order, prepared of all slots in slot order, all of one StepId; at
// least one of each. kReject if ranks disagree on a scalar, the clip norm, the loss scale or the number of
// groups, or if nobody contributed a sample; kSkip if the norm is not finite; else kCommit. Clipping as
// torch.nn.utils.clip_grad_norm_: factor min(1, max / (norm + 1e-6)).
//
// One rule of overflow for every dtype and stage: an inf or a NaN in any rank's gradient makes the norm not
// finite, so the step is skipped and counted and nothing of it reaches a parameter. Gradients are divided by
// the scale that their own backward used; `loss_scale` says how the next one is found.
Verdict Decide(const std::vector<TrainerStep>& steps, const std::vector<OwnerPrepared>& prepared,
               const LossScaleSpec& loss_scale);

// If any owner gives the step up. Only its id and kind count.
Verdict GiveUp(StepId id);

}  // namespace sherd

#endif  // SHERD_CORE_VERDICT_H_
