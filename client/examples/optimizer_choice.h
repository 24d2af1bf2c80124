// What train_gpt's --optimizer and --schedule mean, the same for both trainers. Torch-free.
#ifndef SHERD_CLIENT_EXAMPLES_OPTIMIZER_CHOICE_H_
#define SHERD_CLIENT_EXAMPLES_OPTIMIZER_CHOICE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/optimizer_options.h"
#include "core/schedule.h"

namespace sherd::examples {

// The flags.
struct OptimizerChoice {
  std::string optimizer = "adamw";  // one of OptimizerNames
  double lr = 0;                    // REQUIRES: filled in, by DefaultRate when not given
  std::string schedule;             // of the learning rate, one of ScheduleNames; empty: constant
  int64_t warmup = -1;              // updates; -1: a tenth of all
  std::string warmup_type;          // of DeepSpeed's schedules; empty: log
  // From a configuration, instead of the above.
  std::optional<OptimizerOptions> own_optimizer;
  std::optional<OptimizerOptions> own_others;  // for what is no matrix of a block, where that differs
  std::optional<ScheduleSpec> own_schedule;
};

// Values of --optimizer.
std::vector<std::string> OptimizerNames();

// The learning rate where --lr is not given: by size for the Adams, else the optimizer's own default.
// REQUIRES: optimizer is one of OptimizerNames, size one of kGptSizes.
double DefaultRate(const std::string& optimizer, const std::string& size);

// The chosen optimizer with this weight decay, for the blocks' matrices or for everything else; betas of the
// Adams are 0.9 and 0.95, the momentum of SGD is 0.9, everything else is the optimizer's default. REQUIRES:
// as above.
OptimizerOptions ChooseOptimizer(const OptimizerChoice& choice, double weight_decay, bool matrices = true);

// The chosen schedule of `steps` updates; nothing where none was. OneCycle goes from a tenth of the rate to
// it and back in all of them; LRRangeTest begins with the rate and adds it once more in each tenth.
// INVALID_ARGUMENT as Schedule::Create.
absl::StatusOr<std::optional<Schedule>> ChooseSchedule(const OptimizerChoice& choice, uint64_t steps);

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_OPTIMIZER_CHOICE_H_
