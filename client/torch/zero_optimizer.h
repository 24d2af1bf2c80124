// Training with libtorch whose state lives in Sherd's shard servers: parameters become read-only views of
// shared memory, gradients leave through autograd hooks, and the servers apply the optimizer.
//
//   auto session = sherd::Session::Connect(sherd::SessionOptions::FromEnvironment());
//   auto zero = sherd::torch::ZeroOptimizer::Create(**session, model->named_parameters(),
//   sherd::AdamWOptions().lr(3e-4).weight_decay(0.1),
//   sherd::ZeroOptions().stage(2).max_grad_norm(1.0).global_batch(64));
//   while (auto batch = (*zero)->Begin()) {
//     auto loss = ...;                                  // mean over batch.samples
//     (*zero)->Scale(loss).backward();                  // gradients leave as they are ready
//     auto info = (*zero)->Step(loss);                  // StatusOr<StepInfo>
//   }
//
// Gradients: `.grad` of a parameter is gone once its gradient has left; in stages 0 and 1 it accumulates over
// micro-batches until the last. A parameter without a gradient on any rank is not updated. A tied parameter
// is stored once, under its first name. Frozen parameters (requires_grad false at Create) are stored and
// never updated. A model of frozen ones alone computes and is not trained: its job has neither gradients nor
// an optimizer's state, and needs no Step. With SessionOptions::restore, MetaInit and stage 3 it begins with
// weights from files, which no process holds whole (client/examples/sharded_gpt.h).
//
// Mixed precision (ZeroOptions::compute, or a model of bf16 or fp16 parameters): parameters are views of a
// rounded copy that the servers write beside the fp32 masters, in the same pass. Scale multiplies the loss by
// the loss scale of the step; the servers divide by the same. A step whose gradients are not finite on any
// rank is skipped on all. Write, pull and push deal in the fp32 masters.
//
// Errors: absl::Status; libtorch's exceptions are caught here. Thread-compatible: one thread runs forward,
// backward, Begin and Step.
#ifndef SHERD_CLIENT_TORCH_ZERO_OPTIMIZER_H_
#define SHERD_CLIENT_TORCH_ZERO_OPTIMIZER_H_

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/batch.h"
#include "client/options.h"
#include "client/session.h"
#include "client/torch/job_declaration.h"
#include "client/torch/sharded.h"
#include "core/schedule.h"

namespace sherd::torch {

class ZeroOptimizer {
 public:
  using Blocks = std::vector<std::shared_ptr<ShardedBlock>>;

  // One group of all parameters. `session` must outlive the optimizer; the tensors stay the caller's (their
  // storage becomes shared memory). On the job's first start rank 0's values become the job's; later, and on
  // other ranks, the job's values replace what the tensors held.
  //   INVALID_ARGUMENT     a parameter that is not fp32, bf16 or fp16 on the CPU, or of another 16-bit type
  //                        than the computation, a stage outside 0..3, accumulation < 1
  //   FAILED_PRECONDITION  the job was started with another model or configuration
  // With SessionOptions::restore the job's values are a checkpoint's instead of rank 0's. `blocks`: what
  // stage 3 gathers and releases (sharded.h); every rank gives the same. Parameters of none are always there.
  static absl::StatusOr<std::unique_ptr<ZeroOptimizer>> Create(
      Session& session, const NamedTensors& parameters, const OptimizerOptions& optimizer,
      const ZeroOptions& options, const NamedTensors& buffers = NamedTensors(), const Blocks& blocks = {});
  // Several groups; each parameter in exactly one. All options of one kind of optimizer.
  static absl::StatusOr<std::unique_ptr<ZeroOptimizer>> Create(
      Session& session, const NamedTensors& parameters, const std::vector<ParamGroup>& groups,
      const ZeroOptions& options, const NamedTensors& buffers = NamedTensors(), const Blocks& blocks = {});
  ~ZeroOptimizer();
  ZeroOptimizer(const ZeroOptimizer&) = delete;
  ZeroOptimizer& operator=(const ZeroOptimizer&) = delete;

  // The next micro-batch. Parameters hold the state after step - 1.
  Batch Begin();
  // `loss` times the loss scale of this step, in fp32: what to call backward on. `loss` itself where the
  // scale is
  // 1. Thread-compatible.
  at::Tensor Scale(const at::Tensor& loss) const;
  // The factor alone.
  double loss_scale() const;

  // After backward (skip backward if the batch is empty). With the step's last micro-batch, records STEP and
  // waits until every owner has stored the update. `loss`: mean over this micro-batch's samples, not scaled,
  // for StepInfo::loss; may be undefined.
  //   INVALID_ARGUMENT     ranks disagree on a scalar (the field, both values), or a scalar is out of range;
  //                        the step can be computed again
  //   FAILED_PRECONDITION  a parameter has left shared memory (names it); or gradients overflow at the
  //                        smallest loss scale: training is over, and Begin says so too
  absl::StatusOr<StepInfo> Step(const at::Tensor& loss = {});

  // Scalars of a group, from the next Step on. Every rank must set the same.
  GroupScalars& scalars(int group = 0);
  void set_lr(double lr);
  // From the next Step on the groups' learning rates are the schedule's, made from those set here, and so are
  // their betas where it cycles momentum; it goes by the updates that the servers have made, so a trainer
  // that comes back goes on where the job stands. Every rank must set the same. nullopt: as they are set
  // here.
  void SetSchedule(std::optional<Schedule> schedule);
  void set_max_grad_norm(double norm);

  // Opaque state committed with the next step and handed back after a restart: at most 1 MiB, less 8 bytes
  // for each parameter that does not get exactly one gradient in a micro-batch.
  void SetBlob(std::string blob);
  // What this rank committed with the last step; empty at the beginning.
  const std::string& blob() const;

  // Replaces a parameter's value with the next step, after its update; every rank sees it when Step returns.
  //   NOT_FOUND, INVALID_ARGUMENT  no such parameter, or another shape
  absl::Status Write(const std::string& name, const at::Tensor& value);

  // Stage 3: the named parameters (all, without names) are readable while the result lives; in other stages
  // they always are. Nothing may be gathered any more when the optimizer goes.
  //   NOT_FOUND  no such parameter
  absl::StatusOr<std::shared_ptr<void>> Gather(const std::vector<std::string>& names = {});

  // Lets the servers save the job's state into a directory while training goes on. On one rank. The result is
  // asked by Wait, which must have returned before this object goes.
  //   Save          the last whole step, also in the middle of an accumulation. Returns when its state is cut
  //   SaveWithStep  as it will be after `step`, which is in hand or still to come (0: in hand). What the
  //                 servers must prepare, memory for a copy of the state, goes on beside training; Step() of
  //                 that step waits for it only if it is late, so ask a step or two ahead. One at a time
  std::shared_ptr<PendingSave> Save(const SaveOptions& options);
  std::shared_ptr<PendingSave> SaveWithStep(const SaveOptions& options, uint64_t step = 0);

  // Leaves the job; the parameters stay readable as they are. `finished`: training is complete. Also done by
  // the session's end.
  absl::Status Detach(bool finished = true);

  // Figures for benchmarks.
  struct Traffic {
    int64_t staged_bytes = 0;   // copied to staging so far
    int64_t staging_bytes = 0;  // reserved
    int64_t ring_growths = 0;
  };
  Traffic traffic() const;
  // Stage 3: of all steps so far; else zeros.
  client::ParameterWindow::Stats gathers() const;

 private:
  class Impl;
  explicit ZeroOptimizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sherd::torch

#endif  // SHERD_CLIENT_TORCH_ZERO_OPTIMIZER_H_
