// A job as a folder of DeepSpeed's universal checkpoints, which `load_universal_checkpoint` reads at any
// world size and ZeRO stage, and `sherd push` too:
//
//   global_step<N>/
//     zero/<parameter>/fp32.pt         {"cat_dim": 0, "param": tensor}
//     zero/<parameter>/<plane>.pt      likewise: exp_avg.pt, exp_avg_sq.pt, ...
//     zero/<parameter>/step.pt         the parameter's updates so far, an int64 tensor
//     zero/optimizer_state.pt          what all have in common; no hyper-parameters: DeepSpeed keeps those of
//                                      its own configuration
//     mp_rank_00_model_states.pt       steps so far; frozen parameters and buffers in "module"
//     zero_pp_rank_0_mp_rank_00_model_states.pt   the same for stage 3, without tensors
//   latest_universal                   "global_step<N>"
//
// After deepspeed/checkpoint/ds_to_universal.py, deepspeed/runtime/base_optimizer.py
// (load_hp_checkpoint_state_from_checkpoint_dir), zero/stage3.py and engine.py (_load_checkpoint).
#ifndef SHERD_CLIENT_CLI_PULL_DEEPSPEED_H_
#define SHERD_CLIENT_CLI_PULL_DEEPSPEED_H_

#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/consolidated.h"
#include "client/cli/pull_files.h"

namespace sherd::cli {

// INVALID_ARGUMENT for a parameter whose name cannot be that of a folder. The files are made for one stream,
// in their order: the last ones tell what the ones before contained. Thread-safe.
absl::StatusOr<PullPlan> PlanDeepSpeed(const std::vector<JobValue>& values, const PullWish& wish);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_PULL_DEEPSPEED_H_
