#include "bench/ddp_rank.h"

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <cmath>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <utility>
#include <vector>

#include "bench/residual_model.h"
#include "kernels/optimizer.h"

namespace sherd::bench {

class DdpRank::Impl {
 public:
  Impl(const StepModel& model, int rank, int world_size, const std::string& rendezvous,
       const std::string& address)
      : world_size_(world_size), model_(model.blocks, model.width) {
    ::torch::manual_seed(1);
    {
      at::NoGradGuard no_grad;
      for (at::Tensor& p : model_.parameters()) p.uniform_(-0.02, 0.02);
    }
    if (model.precision == DType::kBFloat16) model_.to(at::kBFloat16);
    if (model.precision == DType::kFloat16) model_.to(at::kHalf);
    ::torch::manual_seed(2 + rank);
    input_ = at::randn({model.batch, model.width});
    auto store = c10::make_intrusive<c10d::FileStore>(rendezvous, world_size);
    auto options = c10d::ProcessGroupGloo::Options::create();
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
    group_ = c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, world_size, options);
    params_ = model_.parameters();
    for (size_t i = 0; i < params_.size(); ++i) {
      accumulators_.push_back(::torch::autograd::impl::grad_accumulator(params_[i]));
      accumulators_.back()->add_post_hook(std::make_unique<Arrival>(this, i));
    }
  }

  void ForwardBackward(bool reduce_as_they_come) {
    overlap_ = reduce_as_they_come;
    model_.DropGradients();
    at::Tensor loss = model_.forward(input_).square().mean();
    loss.backward();
    overlap_ = false;
  }

  void Gradients(bool overlap) {
    ForwardBackward(overlap);
    if (!overlap) {
      for (size_t i = params_.size(); i-- > 0;) AllReduce(i);
    }
    for (auto& w : pending_) w->wait();
    pending_.clear();
  }

  void TorchUpdate() {
    if (torch_adamw_ == nullptr) {
      torch_adamw_ = std::make_unique<::torch::optim::AdamW>(
          params_, ::torch::optim::AdamWOptions(3e-4).betas({0.9, 0.95}).eps(1e-8).weight_decay(0.1));
    }
    at::NoGradGuard no_grad;
    for (at::Tensor& p : params_) p.mutable_grad().div_(world_size_);
    ::torch::nn::utils::clip_grad_norm_(params_, 1.0);
    torch_adamw_->step();
  }

  void FusedUpdate() {
    at::NoGradGuard no_grad;
    if (moments_.empty()) {
      for (const at::Tensor& p : params_) {
        // The kernel takes whole blocks of 256 from aligned memory.
        moments_.push_back({Padded(p), Padded(p), Padded(p)});
      }
    }
    double squares = 0;
    for (const at::Tensor& p : params_) squares += std::pow(p.grad().norm().item<double>(), 2);
    const double norm = std::sqrt(squares) / world_size_;
    const double scale = std::min(1.0, 1.0 / (norm + 1e-6)) / world_size_;
    kernels::Hyper hyper;
    hyper.lr = 3e-4, hyper.beta1 = 0.9, hyper.beta2 = 0.95, hyper.eps = 1e-8, hyper.weight_decay = 0.1;
    const kernels::Scalars s =
        kernels::Prepare(kernels::OptimizerKind::kAdamW, hyper, ++fused_steps_, static_cast<float>(scale));
    const kernels::UpdateFn update = kernels::Resolve(kernels::OptimizerKind::kAdamW);
    for (size_t i = 0; i < params_.size(); ++i) {
      const int64_t whole = params_[i].numel() / kernels::kBlockElements * kernels::kBlockElements;
      // The last, partial block of a weight is left out: 1 of 31240.
      update({moments_[i][0].data_ptr<float>(),
              {moments_[i][1].data_ptr<float>(), moments_[i][2].data_ptr<float>()},
              params_[i].grad().data_ptr<float>()},
             s, whole);
    }
  }

 private:
  struct Arrival : ::torch::autograd::FunctionPostHook {
    Arrival(Impl* impl, size_t param) : impl(impl), param(param) {}
    ::torch::autograd::variable_list operator()(const ::torch::autograd::variable_list& outputs,
                                                const ::torch::autograd::variable_list&) override {
      if (impl->overlap_) impl->AllReduce(param);
      return outputs;
    }
    Impl* const impl;
    const size_t param;
  };

  static at::Tensor Padded(const at::Tensor& p) {
    return at::zeros({(p.numel() + 255) / 256 * 256}, at::kFloat);
  }

  void AllReduce(size_t i) {
    std::vector<at::Tensor> one{params_[i].grad()};
    pending_.push_back(group_->allreduce(one));
  }

  const int world_size_;
  ResidualModel model_;
  at::Tensor input_;
  std::vector<at::Tensor> params_;
  std::vector<std::shared_ptr<::torch::autograd::Node>> accumulators_;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;
  std::vector<c10::intrusive_ptr<c10d::Work>> pending_;
  bool overlap_ = false;
  std::unique_ptr<::torch::optim::AdamW> torch_adamw_;
  std::vector<std::vector<at::Tensor>> moments_;  // a copy of the parameter and its moments
  uint64_t fused_steps_ = 0;
};

DdpRank::DdpRank(const StepModel& model, int rank, int world_size, const std::string& rendezvous,
                 const std::string& address)
    : impl_(std::make_unique<Impl>(model, rank, world_size, rendezvous, address)) {}
DdpRank::~DdpRank() = default;
void DdpRank::Local() { impl_->ForwardBackward(false); }
void DdpRank::TorchStep(bool overlap) {
  impl_->Gradients(overlap);
  impl_->TorchUpdate();
}
void DdpRank::FusedStep(bool overlap) {
  impl_->Gradients(overlap);
  impl_->FusedUpdate();
}

}  // namespace sherd::bench
