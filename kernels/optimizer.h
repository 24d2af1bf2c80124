// The updates of optimizers (optimizer_kinds.h lists them) with the semantics and names of torch.optim, or of
// the paper that the .inc names. One expression per optimizer serves a plain loop, every SIMD instruction set
// and CUDA, with no fused multiply-add anywhere, so all of them agree bit for bit.
//
//   const UpdateFn update = Resolve(OptimizerKind::kAdamW);                    // once
//   const Scalars s = Prepare(OptimizerKind::kAdamW, hyper, tensor_step, unscale * clip);   // per tensor and
//   step update({param, {exp_avg, exp_avg_sq}, grad}, s, elements);
//
// With an undo journal, block by block (core/block_journal.h):
//   const JournaledUpdateFn update = ResolveJournaled(OptimizerKind::kAdamW);
//   update(args, s, undo, &saved);
//
// To add an optimizer: optimizer_kinds.h says what.
//
// Everything here is thread-safe and never blocks or allocates, but for the strings of CheckHyper.
#ifndef SHERD_KERNELS_OPTIMIZER_H_
#define SHERD_KERNELS_OPTIMIZER_H_

#include <atomic>
#include <cstdint>
#include <string>

#include "kernels/block.h"
#include "kernels/scalars.h"

namespace sherd {
namespace kernels {

// REQUIRES: kind is one of OptimizerKind; aborts otherwise. Check values from outside with FindOptimizer.
const OptimizerInfo& Info(OptimizerKind kind);

// Empty if `hyper` makes sense for `kind`, else one sentence naming the field, its value and what is allowed.
// As strict as torch.optim, and eps must be above zero in fp32: with eps 0 an element that never saw a
// gradient would become 0/0.
std::string CheckHyper(OptimizerKind kind, const Hyper& hyper);

// What the update of one tensor needs at one step. `tensor_step` counts this tensor's updates including this
// one (the first is 1). `grad_scale` multiplies the gradient before anything else: 1 / loss scale, times the
// clip factor. Bias corrections are computed here, in double, by multiplications alone: the same bits on
// every machine. REQUIRES: CheckHyper(kind, hyper) is empty; tensor_step >= 1 (aborts otherwise).
Scalars Prepare(OptimizerKind kind, const Hyper& hyper, uint64_t tensor_step, float grad_scale);

// One range of blocks. Borrowed for the call. All aligned to 64 bytes; none overlaps another.
struct UpdateArgs {
  float* param;               // fp32 master, updated in place
  float* planes[kMaxPlanes];  // in the order of OptimizerInfo::plane_names, updated in place
  const float* grad;          // reduced, still scaled
};

// Updates `elements` elements. REQUIRES: elements is a multiple of kBlockElements. Zeros everywhere (padding)
// stay zeros, but for a plane that begins with another value (Adagrad's initial_accumulator_value).
using UpdateFn = void (*)(const UpdateArgs& args, const Scalars& scalars, int64_t elements);

// The best implementation for this CPU, chosen at run time. REQUIRES: a known kind (aborts otherwise).
UpdateFn Resolve(OptimizerKind kind);

// The same expression in a plain loop: the reference for every other implementation.
UpdateFn ResolveScalar(OptimizerKind kind);

// Updates one block, and before elements change copies what they were to `undo`: (1 + planes) *
// kBlockElements floats, aligned to 64 bytes, param first. `*saved`, 0 at first, grows as it goes: element i
// of every plane may have changed only if i < *saved, and then it stands in `undo`, at whatever instant the
// process dies. `undo` is written with ordinary stores: it stays in the cache if the caller uses the same
// buffer again.
using JournaledUpdateFn = void (*)(const UpdateArgs& args, const Scalars& scalars, float* undo,
                                   std::atomic<uint64_t>* saved);
JournaledUpdateFn ResolveJournaled(OptimizerKind kind);

// The copy alone, of the whole block.
using SaveFn = void (*)(const UpdateArgs& args, float* undo);
SaveFn ResolveSave(OptimizerKind kind);

// For optimizers with OptimizerInfo::norms a block's update is two passes, as how far it goes depends on the
// whole of its tensor. Both together give the bits of UpdateFn with the second one's scalars.
struct TwoPasses {
  // First: moves the planes, and replaces `grad`, which is args.grad, by the direction that the update moves
  // the values along (lr left aside). Takes sums of squares in double, by the one order of lane_tree.h:
  // norms[0] of the values, norms[1] of the direction. The journal as JournaledUpdateFn's, but `undo` keeps
  // the gradient where that keeps the values.
  void (*move)(const UpdateArgs& args, float* grad, const Scalars& scalars, float* undo,
               std::atomic<uint64_t>* saved, double norms[2]);
  // Second: moves the values, and nothing else, along the direction. `undo` keeps them alone.
  void (*follow)(float* param, const float* direction, const Scalars& scalars, float* undo,
                 std::atomic<uint64_t>* saved);
};
// Of nulls for any other optimizer. REQUIRES: a known kind (aborts otherwise).
TwoPasses ResolveTwoPasses(OptimizerKind kind);

// The norms of one block that `move` would take, in a plain loop that changes nothing: the reference. Null as
// above.
using NormsFn = void (*)(const UpdateArgs& args, const Scalars& scalars, double norms[2]);
NormsFn ResolveNormsScalar(OptimizerKind kind);

// Floats of an undo buffer that fits every optimizer.
constexpr int64_t kMaxUndoElements = (1 + kMaxPlanes) * kBlockElements;

// The instruction set that Resolve picks here, for logs: "AVX3", "AVX2", "SSE4", ...
const char* SimdName();

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_OPTIMIZER_H_
