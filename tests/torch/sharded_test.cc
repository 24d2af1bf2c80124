// Blocks around which parameters come and go: the same bits as with parameters that are always there, and
// nothing gathered when a backward is over, however it ends.
#include "client/torch/sharded.h"

#include <ATen/ATen.h>
#include <torch/torch.h>

#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "client/torch/job_declaration.h"
#include "client/torch/stray_write.h"
#include "gtest/gtest.h"
#include "tests/step/in_process_job.h"
#include "tests/torch/sharded_net.h"

namespace sherd::tests {
namespace {

using torch::Sharded;
using torch::ShardedBlock;
using ::torch::autograd::AutogradContext;
using ::torch::autograd::variable_list;

// The net's parameters in the memory of a job, readable while they are gathered.
class ShardedTest : public ::testing::Test {
 protected:
  // From here on the net is sharded.
  void Shard(const PrefetchLimits& limits = Nothing()) {
    ZeroOptions options;
    Stage3Options stage3;
    stage3.persistence.tensor = 0;
    options.stage(3).stage3(stage3);
    const torch::NamedTensors parameters = net_.parameters();
    torch::SharedBuffers buffers;
    absl::StatusOr<torch::JobDeclaration> declared =
        torch::DeclareJob(parameters, {{"", parameters.keys(), AdamWOptions()}}, options, 1,
                          torch::NamedTensors(), &buffers, net_.blocks());
    ASSERT_TRUE(declared.ok()) << declared.status();
    JobSpec spec = declared->spec;
    spec.job = "sharded-test";
    job_ = std::make_unique<InProcessJob>(spec, 1);
    const Layout& layout = job_->memory().layout();
    for (torch::SharedParameter& p : declared->parameters) {
      const TensorInfo& info = *layout.Find(p.name);
      p.index = info.index;
      std::memcpy(job_->memory().plane(0) + info.blocks.begin * kBlockElements, p.tensor.data_ptr(),
                  info.numel * 4);
    }
    std::shared_ptr<runtime::JobMemory> mine = job_->OpenAsTrainer();
    auto window = client::ParameterWindow::Create(mine->layout(), declared->persistent, limits,
                                                  *client::SharedUnits(mine));
    ASSERT_TRUE(window.ok()) << window.status();
    window_ = *std::move(window);
    at::NoGradGuard no_grad;
    std::vector<torch::GuardedRange> guarded;
    for (torch::SharedParameter& p : declared->parameters) {
      void* const home = const_cast<void*>(window_->Address(p.index));
      p.tensor.set_data(at::from_blob(
          home, p.tensor.sizes(), [w = window_](void*) {}, at::kFloat));
      guarded.push_back(
          {home, p.tensor.numel() * 4, p.name, window_->readable(layout.tensors()[p.index].unit)});
    }
    torch::GuardAgainstStrayWrites(std::move(guarded));
    torch::OpenBlocks(net_.blocks(), layout, declared->parameters, window_);
  }

  static PrefetchLimits Nothing() {
    PrefetchLimits limits;
    limits.prefetch_bucket = limits.max_reuse_distance = 0;
    return limits;
  }

  struct Outcome {
    float loss;
    std::vector<at::Tensor> gradients;
  };
  Outcome Run(Checkpoint checkpoint, bool in_place) {
    const at::Tensor loss = net_.Loss(ids_, checkpoint, in_place);
    loss.backward();
    return {loss.item<float>(), TakeGradients()};
  }
  std::vector<at::Tensor> TakeGradients() {
    std::vector<at::Tensor> taken;
    for (const auto& p : net_.parameters()) {
      taken.push_back(p.value().grad().defined() ? p.value().grad().clone() : at::Tensor());
      at::Tensor tensor = p.value();
      tensor.mutable_grad().reset();
    }
    return taken;
  }
  void ExpectNothingGathered() {
    if (window_ == nullptr) return;
    EXPECT_EQ(window_->stats().live_bytes, 0);
    for (size_t u = 0; u < job_->memory().layout().units().size(); ++u) {
      EXPECT_FALSE(window_->InUse(static_cast<int>(u))) << u;
      EXPECT_EQ(window_->readable(static_cast<int>(u))->load(), 0) << u;
    }
  }
  static void ExpectSame(const Outcome& got, const Outcome& want) {
    EXPECT_EQ(got.loss, want.loss);
    ASSERT_EQ(got.gradients.size(), want.gradients.size());
    for (size_t i = 0; i < want.gradients.size(); ++i) {
      ASSERT_EQ(got.gradients[i].defined(), want.gradients[i].defined()) << i;
      if (want.gradients[i].defined()) {
        EXPECT_TRUE(at::equal(got.gradients[i], want.gradients[i])) << i;
      }
    }
  }

  void SetUp() override {
    at::set_num_threads(1);
    ::torch::manual_seed(7);
    net_ = Net();
    ids_ = ::torch::randint(50, {4, 7});
  }

  Net net_;
  at::Tensor ids_;
  std::unique_ptr<InProcessJob> job_;
  std::shared_ptr<client::ParameterWindow> window_;
};

TEST_F(ShardedTest, SameBitsAndNothingLeft) {
  std::vector<std::pair<Checkpoint, bool>> cases;
  for (const Checkpoint c :
       {Checkpoint::kNone, Checkpoint::kReentrant, Checkpoint::kHandedOn, Checkpoint::kInside}) {
    for (const bool in_place : {false, true}) cases.emplace_back(c, in_place);
  }
  std::vector<Outcome> want;
  for (const auto& [c, in_place] : cases) want.push_back(Run(c, in_place));
  Shard();
  ExpectNothingGathered();
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < cases.size(); ++i) {
      SCOPED_TRACE(i);
      window_->BeginPass(true);
      const at::Tensor loss = net_.Loss(ids_, cases[i].first, cases[i].second);
      ExpectNothingGathered();  // between forward and backward
      loss.backward();
      ExpectSame({loss.item<float>(), TakeGradients()}, want[i]);
      ExpectNothingGathered();
      window_->EndPass();
    }
  }
}

TEST_F(ShardedTest, PrefetchChangesNoBit) {
  const Outcome want = Run(Checkpoint::kNone, false);
  PrefetchLimits limits;
  limits.prefetch_bucket = 4000, limits.max_live = 8000, limits.max_reuse_distance = 5000;
  Shard(limits);
  for (int pass = 0; pass < 3; ++pass) {
    window_->BeginPass(true);
    ExpectSame(Run(Checkpoint::kNone, false), want);
    window_->EndPass();
    ExpectNothingGathered();
  }
  EXPECT_GT(window_->stats().hits, 0);
  EXPECT_GT(window_->stats().kept, 0);
  EXPECT_EQ(window_->stats().reorders, 0);
  EXPECT_LE(window_->stats().peak_live, 8000);
}

TEST_F(ShardedTest, EvaluationGathersAndReleases) {
  const float want = Run(Checkpoint::kNone, false).loss;
  Shard();
  const at::NoGradGuard no_grad;
  const at::Tensor loss = net_.Loss(ids_, Checkpoint::kNone, false);
  EXPECT_FALSE(loss.requires_grad());
  EXPECT_EQ(loss.item<float>(), want);
  ExpectNothingGathered();
}

TEST_F(ShardedTest, AGraphThatIsDroppedAndOneThatIsUsedTwice) {
  const Outcome once = Run(Checkpoint::kNone, false);
  Shard();
  net_.Loss(ids_, Checkpoint::kNone, false).reset();
  ExpectNothingGathered();
  const at::Tensor loss = net_.Loss(ids_, Checkpoint::kNone, false);
  loss.backward({}, /*retain_graph=*/true);
  ExpectSame({loss.item<float>(), TakeGradients()}, once);
  ExpectNothingGathered();
  loss.backward();
  ExpectSame({loss.item<float>(), TakeGradients()}, once);
  ExpectNothingGathered();
}

TEST_F(ShardedTest, GradientsOfInputsAlone) {
  const at::Tensor x = ::torch::randn({4, 32}, ::torch::requires_grad());
  const auto gradient = [&] { return ::torch::autograd::grad({net_.outer(net_.twice(x)).sum()}, {x})[0]; };
  const at::Tensor want = gradient();
  Shard();
  EXPECT_TRUE(at::equal(gradient(), want));
  ExpectNothingGathered();
}

TEST_F(ShardedTest, ExceptionsLeaveNothing) {
  const Outcome want = Run(Checkpoint::kNone, false);
  Shard();
  EXPECT_THROW(net_.last.block()->Call([]() -> at::Tensor { throw std::runtime_error("on purpose"); }),
               std::runtime_error);
  ExpectNothingGathered();
  EXPECT_THROW(net_.last(at::zeros({2, 3})), c10::Error);  // of another width
  ExpectNothingGathered();
  const at::Tensor x = ::torch::randn({4, 32}, ::torch::requires_grad());
  const at::Tensor loss = net_.outer(Thrower::apply(net_.twice(x))).sum();
  EXPECT_THROW(loss.backward(), std::runtime_error);
  ExpectNothingGathered();
  const at::Tensor inside =
      net_.last.block()->Call([&] { return Thrower::apply(net_.last.module()->forward(x)); });
  EXPECT_THROW(inside.sum().backward(), std::runtime_error);
  ExpectNothingGathered();
  TakeGradients();
  ExpectSame(Run(Checkpoint::kNone, false), want);
}

TEST_F(ShardedTest, BlocksSkippedAndInAnotherOrder) {
  const at::Tensor x = ::torch::randn({4, 32});
  const auto run = [&](int order) {
    at::Tensor y = x;
    if (order != 1) y = net_.twice(y);
    y = order == 2 ? net_.last(net_.outer(y)) : net_.outer(net_.last(y));
    if (order == 3) y = net_.twice(y);
    y.sum().backward();
    return Outcome{0, TakeGradients()};
  };
  std::vector<Outcome> want;
  for (int order = 0; order < 4; ++order) want.push_back(run(order));
  PrefetchLimits limits;
  limits.prefetch_bucket = 2000;
  Shard(limits);
  for (const int order : {0, 0, 1, 2, 0, 3, 3, 1, 0}) {
    window_->BeginPass(true);
    ExpectSame(run(order), want[order]);
    window_->EndPass();
    ExpectNothingGathered();
  }
  EXPECT_GT(window_->stats().reorders, 0);
}

TEST_F(ShardedTest, NestedAndSharedBlocksGatherTheirOwn) {
  const std::vector<std::shared_ptr<ShardedBlock>> blocks = net_.blocks();
  const Sharded<Outer>& outer = net_.outer;
  EXPECT_EQ(outer.block()->Own(blocks).size(), 1u);  // `scale`: the rest is the inner block's
  EXPECT_EQ(outer.block()->Own({outer.block()}).size(), 3u);
  ShardedBlock shared(*net_.last.module());
  shared.AlsoUses({outer.module()->scale});
  EXPECT_EQ(shared.Own(blocks).size(), 3u);
}

// Two blocks with one module, as a tied embedding and head.
TEST_F(ShardedTest, ATensorOfTwoBlocks) {
  auto head = std::make_shared<ShardedBlock>(*net_.last.module());
  head->AlsoUses({net_.embed.module()->table->weight});
  const auto run = [&] {
    const at::Tensor x = net_.embed(ids_);
    const at::Tensor y = head->Call([&] {
      return at::mm(net_.last.module()->forward(x).view({-1, 32}), net_.embed.module()->table->weight.t());
    });
    y.sum().backward();
    return Outcome{0, TakeGradients()};
  };
  const Outcome want = run();
  Shard();
  std::vector<torch::SharedParameter> parameters;
  for (const auto& p : net_.parameters()) {
    torch::SharedParameter s;
    s.name = p.key(), s.tensor = p.value(), s.index = job_->memory().layout().Find(p.key())->index;
    parameters.push_back(s);
  }
  torch::OpenBlocks({net_.embed.block(), head}, job_->memory().layout(), parameters, window_);
  ExpectSame(run(), want);
  ExpectNothingGathered();
}

TEST_F(ShardedTest, AnOutputThatIsAnInputMustNotBeChangedInPlace) {
  Shard();
  const at::Tensor x = ::torch::randn({4, 32}, ::torch::requires_grad()) * 2;
  at::Tensor same = net_.last.block()->Call([&] { return x; });
  EXPECT_THROW(same.add_(1), c10::Error);
  at::Tensor view = net_.last.block()->Call([&] { return x.view({2, 64}); });
  EXPECT_THROW(view.add_(1), c10::Error);
  same.sum().backward();  // as it is, it may be used
  ExpectNothingGathered();
}

TEST_F(ShardedTest, TensorsAreFoundInResults) {
  at::Tensor a = at::zeros({1}), b = at::zeros({2});
  std::vector<at::Tensor*> found;
  auto result = std::tuple(a, std::pair(1, b), std::optional<at::Tensor>(), std::string("x"),
                           std::map<int, std::vector<at::Tensor>>{{1, {a, b}}}, std::array<at::Tensor, 1>{b},
                           std::vector<bool>{true});
  torch::CollectTensors(result, &found);
  std::string sizes;
  for (const at::Tensor* t : found) sizes += std::to_string(t->numel());
  EXPECT_EQ(sizes, "12122");
}

using ShardedDeathTest = ShardedTest;

TEST_F(ShardedDeathTest, AUseOfAReleasedParameterNamesIt) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto use = [](const at::Tensor& t) { std::printf("%f\n", t.sum().item<double>()); };
  EXPECT_DEATH(
      {
        Shard();
        use(net_.last.module()->a->weight);
      },
      "a use of parameter last.a.weight while it is released");
  EXPECT_DEATH(
      {
        Shard();
        // An alias that outlives the call.
        const at::Tensor row =
            net_.many.block()->Call([&] { return net_.many.module()->a->bias.slice(0, 0, 8); });
        use(row);
      },
      "a use of parameter many.a.bias while it is released");
  EXPECT_DEATH(
      {
        Shard();
        const at::NoGradGuard no_grad;
        net_.last.block()->Call([&] { net_.last.module()->a->weight.add_(1); });
      },
      "a store into parameter last.a.weight");
}

}  // namespace
}  // namespace sherd::tests
