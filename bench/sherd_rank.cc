#include "bench/sherd_rank.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "bench/residual_model.h"
#include "client/options.h"
#include "client/session.h"
#include "client/torch/zero_optimizer.h"

namespace sherd::bench {
namespace {

void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::_Exit(1);
}

template <typename T>
T Must(absl::StatusOr<T> value) {
  Must(value.status());
  return *std::move(value);
}

SessionOptions Where(const std::string& job, const std::string& endpoint, int rank, int world_size,
                     const std::string& reduce_groups) {
  SessionOptions o;
  o.endpoints = endpoint;
  o.job = job;
  o.rank = rank;
  o.world_size = world_size;
  o.reduce_groups = reduce_groups;
  return o;
}

OptimizerOptions OptimizerOf(const StepModel& model) {
  if (model.lamb) return LambOptions().lr(3e-4).betas(0.9, 0.95).eps(1e-8).weight_decay(0.1);
  return AdamWOptions().lr(3e-4).betas(0.9, 0.95).eps(1e-8).weight_decay(0.1);
}

}  // namespace

class SherdRank::Impl {
 public:
  Impl(const StepModel& model, const std::string& job, const std::string& endpoint, int rank, int world_size,
       int stage, const Stage3Options& stage3, const std::string& reduce_groups)
      : model_(model.blocks, model.width),
        session_(Must(Session::Connect(Where(job, endpoint, rank, world_size, reduce_groups)))) {
    ::torch::manual_seed(1);
    {
      at::NoGradGuard no_grad;
      for (at::Tensor& p : model_.parameters()) p.uniform_(-0.02, 0.02);
    }
    ::torch::manual_seed(2 + rank);
    input_ = at::randn({model.batch, model.width});
    zero_ = Must(torch::ZeroOptimizer::Create(*session_, model_.named_parameters(), OptimizerOf(model),
                                              ZeroOptions()
                                                  .stage(stage)
                                                  .stage3(stage3)
                                                  .max_grad_norm(1.0)
                                                  .global_batch(world_size * model.batch)
                                                  .compute(model.precision),
                                              torch::NamedTensors(), model_.sharded_blocks()));
  }
  ~Impl() { zero_->Detach(true).IgnoreError(); }

  void Step() {
    Must(zero_->Begin().status);
    at::Tensor loss = model_.forward(input_).square().mean();
    zero_->Scale(loss).backward();
    loss.reset();  // as a training loop would keep only its value
    const StepInfo info = Must(zero_->Step());
    if (!info.complete || info.skipped) Must(absl::InternalError("the step was not committed"));
  }

  ResidualModel model_;
  at::Tensor input_;
  std::unique_ptr<Session> session_;
  std::unique_ptr<torch::ZeroOptimizer> zero_;
};

SherdRank::SherdRank(const StepModel& model, const std::string& job, const std::string& endpoint, int rank,
                     int world_size, int stage, const Stage3Options& stage3, const std::string& reduce_groups)
    : impl_(std::make_unique<Impl>(model, job, endpoint, rank, world_size, stage, stage3, reduce_groups)) {}
SherdRank::~SherdRank() = default;
void SherdRank::WarmUpLibraries() {
  ResidualModel model(1, 16);
  model.forward(at::randn({4, 16})).sum().backward();
}
void SherdRank::Step() { impl_->Step(); }
int64_t SherdRank::staged_bytes() const { return impl_->zero_->traffic().staged_bytes; }
int64_t SherdRank::staging_bytes() const { return impl_->zero_->traffic().staging_bytes; }

}  // namespace sherd::bench
