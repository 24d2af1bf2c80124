// What a pull writes, in each of its formats: which files, made how, and which values of the job fill them.
//
//   safetensors   NAME.safetensors; or NAME-00001-of-0000N.safetensors and an index. Names: consolidated.h
//   pt            one file of torch.save: {name: tensor}; or, with the optimizer, {"model": {name: tensor},
//                 "optimizer": {plane: {name: tensor}}, "sherd": {"step": int, "epoch": int}}
//   deepspeed     a folder of DeepSpeed's universal form: pull_deepspeed.h
#ifndef SHERD_CLIENT_CLI_PULL_PLAN_H_
#define SHERD_CLIENT_CLI_PULL_PLAN_H_

#include "absl/status/statusor.h"
#include "client/cli/pull_files.h"
#include "client/cli/tensor_list.h"

namespace sherd::cli {

// INVALID_ARGUMENT for names that cannot be told apart, or that the format cannot hold, a buffer of an
// unknown type; else as formats::SplitPlan and formats::TorchTree. Pure; thread-safe.
absl::StatusOr<PullPlan> PlanPull(const TensorList& job, const PullWish& wish);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_PULL_PLAN_H_
