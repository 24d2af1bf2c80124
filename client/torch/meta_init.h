// Builds a model whose parameters exist nowhere in the process that builds it: they become values first in
// the job's shared memory.
//
//   auto model = [] {
//     sherd::torch::MetaInit meta(/*seed=*/1);
//     return Net(config);                      // as always: modules make and initialise their parameters
//   }();
//   ZeroOptimizer::Create(session, model->named_parameters(), ...);
//
// While it lives, a floating-point tensor that torch::empty makes in this thread (as the modules of torch::nn
// make theirs) has an address and no memory, and initialisers only note what they would do: zero_, fill_,
// uniform_, normal_, mul_ by a number, and so all of torch::nn::init that are made of them (zeros_, ones_,
// constant_, uniform_, normal_, kaiming_*, xavier_*). The last one counts. The job's first values follow from
// the note, `seed`, the parameter's name and the element (core/initial_values.h), not from the generator that
// was passed: the same for every number of trainers and servers, and not those of a process without MetaInit.
//
// Tensors that come about otherwise (zeros, randn, arange) are ordinary and may be parameters too: rank 0's
// values are the job's. Buffers get their memory and values when they are given to a ZeroOptimizer.
//
//   c10::Error  an operation needs the values of such a tensor, or initialises a part of one: names it
// After the scope such a use ends the process with a line (stray_write.h).
#ifndef SHERD_CLIENT_TORCH_META_INIT_H_
#define SHERD_CLIENT_TORCH_META_INIT_H_

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <cstdint>
#include <optional>
#include <string>

#include "core/initial_values.h"

namespace sherd::torch {

// Scopes do not nest. Thread-compatible; must end in the thread it began in.
class MetaInit {
 public:
  explicit MetaInit(uint64_t seed);
  ~MetaInit();
  MetaInit(const MetaInit&) = delete;
  MetaInit& operator=(const MetaInit&) = delete;

 private:
  const c10::impl::IncludeDispatchKeyGuard on_;
};

struct NotedValues {
  std::optional<Initialiser> how;  // nothing: it was made and never initialised
  uint64_t seed = 0;
};

// Nothing for an ordinary tensor.
std::optional<NotedValues> NotedOf(const at::Tensor& t);

// Gives a tensor of a MetaInit its memory and values; leaves others alone. c10::Error: it has none noted.
void Materialise(const std::string& name, at::Tensor* t);

}  // namespace sherd::torch

#endif  // SHERD_CLIENT_TORCH_META_INIT_H_
