// What a program knows by itself when it reads a configuration: its flags, its defaults, its model.
//
//   ProgramValues mine;
//   mine.lr = {3e-4};                  // used where the file says "auto"
//   mine.max_grad_norm = {0.5, "--clip"};  // the user asked for it: the file must not say otherwise
#ifndef SHERD_CLIENT_CONFIG_PROGRAM_VALUES_H_
#define SHERD_CLIENT_CONFIG_PROGRAM_VALUES_H_

#include <cstdint>
#include <string>
#include <utility>

#include "absl/types/optional.h"
#include "core/types.h"

namespace sherd {

template <typename T>
struct ProgramValue {
  absl::optional<T> value;
  std::string flag;  // set if the user gave the value by this flag
};

struct ProgramValues {
  int world_size = 1;
  absl::optional<int64_t> hidden_size;  // of the model, for buckets that are "auto"
  ProgramValue<int64_t> stage, train_batch, micro_batch, accumulation;
  ProgramValue<int64_t> warmup_steps, total_steps;
  ProgramValue<double> lr, weight_decay, eps, max_grad_norm;
  ProgramValue<std::pair<double, double>> betas;
  ProgramValue<DType> compute;
  ProgramValue<double> loss_scale;  // of fp16; 0: dynamic
};

}  // namespace sherd

#endif  // SHERD_CLIENT_CONFIG_PROGRAM_VALUES_H_
