// A trainer that holds gathered parameters while steps change them, and looks at them after each. Under
// `sherd run`, on one host or several.
//
//   gather_trainer STEPS
//
// Every rank holds other parameters over steps, gathers all of them for a moment every other step, and rank 0
// writes one by hand. After each step what is held must be, bit for bit, what the servers have. Prints how
// often that was so; exit status 1 where it was not.
#include <torch/torch.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "client/session.h"
#include "client/torch/meta_init.h"
#include "client/torch/sharded.h"
#include "client/torch/zero_optimizer.h"

namespace {

constexpr int kWidth = 48, kLayers = 3, kBatch = 8;

int Fail(const std::string& what) {
  std::fprintf(stderr, "gather_trainer: %s\n", what.c_str());
  return 1;
}

struct LayerImpl : torch::nn::Module {
  LayerImpl() : a(register_module("a", torch::nn::Linear(kWidth, kWidth))) {}
  torch::Tensor forward(const torch::Tensor& x) { return torch::tanh(a(x)); }
  torch::nn::Linear a{nullptr};
};
TORCH_MODULE(Layer);

struct NetImpl : torch::nn::Module {
  NetImpl() {
    for (int i = 0; i < kLayers; ++i) layers.emplace_back(register_module(std::to_string(i), Layer()));
  }
  torch::Tensor forward(torch::Tensor x) {
    for (auto& layer : layers) x = layer(x);
    return x;
  }
  std::vector<sherd::torch::Sharded<Layer>> layers;
};
TORCH_MODULE(Net);

Net MakeNet() {
  const sherd::torch::MetaInit meta(3);
  return Net();
}

class Trainer {
 public:
  int Run(uint64_t steps) {
    auto session = sherd::Session::Connect(sherd::SessionOptions::FromEnvironment());
    if (!session.ok()) return Fail(std::string(session.status().message()));
    session_ = session->get();
    sherd::Stage3Options keep_nothing;
    keep_nothing.persistence = {0, 0};
    keep_nothing.prefetch.max_reuse_distance = 0;
    auto zero = sherd::torch::ZeroOptimizer::Create(
        *session_, net_->named_parameters(), sherd::AdamWOptions().lr(0.01),
        sherd::ZeroOptions().stage(3).stage3(keep_nothing).global_batch(kBatch).steps(steps),
        sherd::torch::NamedTensors(), sherd::torch::BlocksOf(net_->layers));
    if (!zero.ok()) return Fail(std::string(zero.status().message()));
    zero_ = zero->get();
    const std::string mine = std::to_string(session_->rank() % kLayers) + ".a.weight";
    std::shared_ptr<void> held, other;
    for (;;) {
      const sherd::Batch batch = zero_->Begin();
      if (!batch.status.ok()) return Fail(std::string(batch.status.message()));
      if (!batch.more) break;
      if (!Hold({mine}, batch.step == 1, &held)) return 1;
      if (batch.step == 2 && !Hold({"2.a.bias", "0.a.weight"}, true, &other)) return 1;
      if (batch.step == 5) other.reset();
      if (session_->rank() == 0 && batch.step == 3) {
        const absl::Status written = zero_->Write(mine, torch::full({kWidth, kWidth}, 0.03125));
        if (!written.ok()) return Fail(std::string(written.message()));
      }
      const torch::Tensor all = torch::arange(kBatch * kWidth, torch::kFloat32).view({kBatch, kWidth}).sin();
      const torch::Tensor x = all.slice(0, batch.samples.begin, batch.samples.end);
      const torch::Tensor loss = torch::mse_loss(net_->forward(x), x.cos());
      loss.backward();
      const absl::StatusOr<sherd::StepInfo> info = zero_->Step(loss.detach());
      if (!info.ok()) return Fail(std::string(info.status().message()));
      if (!Compare({mine}, info->step)) return 1;
      if (batch.step >= 2 && batch.step < 5 && !Compare({"2.a.bias", "0.a.weight"}, info->step)) return 1;
      if (batch.step % 2 != 0) continue;
      std::shared_ptr<void> everything;
      std::vector<std::string> names;
      for (const auto& p : net_->named_parameters()) names.push_back(p.key());
      if (!Hold({}, true, &everything) || !Compare(names, info->step)) return 1;
    }
    std::printf("rank %d: %d equal\n", session_->rank(), compared_);
    held.reset();
    const absl::Status left = zero_->Detach();
    return left.ok() ? 0 : Fail(std::string(left.message()));
  }

 private:
  bool Hold(const std::vector<std::string>& names, bool now, std::shared_ptr<void>* out) {
    if (!now) return true;
    absl::StatusOr<std::shared_ptr<void>> held = zero_->Gather(names);
    if (held.ok()) *out = *std::move(held);
    return held.ok() || Fail(std::string(held.status().message())) == 0;
  }

  // What is held of the parameters, and the servers' values of them after `step`.
  bool Compare(const std::vector<std::string>& names, uint64_t step) {
    const sherd::Layout& layout = session_->memory().layout();
    std::vector<std::vector<float>> values;
    std::vector<absl::Span<float>> room;
    for (const sherd::TensorInfo& t : layout.tensors()) values.emplace_back(t.numel);
    for (std::vector<float>& v : values) room.push_back(absl::MakeSpan(v));
    const absl::StatusOr<uint64_t> read = session_->ReadMasters(room);
    if (!read.ok()) return Fail(std::string(read.status().message())) == 0;
    // Nobody goes on to the next step before this rank does.
    if (*read != step) return Fail("the servers are at step " + std::to_string(*read)) == 0;
    for (const std::string& name : names) {
      const std::vector<float>& want = values[layout.Find(name)->index];
      const torch::Tensor is = net_->named_parameters()[name];
      if (std::memcmp(is.data_ptr<float>(), want.data(), want.size() * 4) != 0)
        return Fail("step " + std::to_string(step) + ": " + name + " is not what the servers have") == 0;
      ++compared_;
    }
    return true;
  }

  Net net_ = MakeNet();
  sherd::Session* session_ = nullptr;
  sherd::torch::ZeroOptimizer* zero_ = nullptr;
  int compared_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return Fail("usage: gather_trainer STEPS");
  torch::set_num_threads(1);
  return Trainer().Run(std::strtoull(argv[1], nullptr, 10));
}
