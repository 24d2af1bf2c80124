// The step protocol with real engines and shared memory, against an unsharded model computed here with the
// scalar kernels: bit for bit.
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "core/verdict.h"
#include "gtest/gtest.h"
#include "kernels/optimizer.h"
#include "tests/step/in_process_job.h"

namespace sherd::tests {
namespace {

// Gradient of element `e` of tensor `t` at a step, micro-batch and rank: any numbers that differ.
float Gradient(uint64_t step, int micro, int rank, int t, int64_t e) {
  uint64_t h = step * 1000003 + micro * 7919 + rank * 104729 + t * 1299709 + e * 15485863 + 12345;
  h ^= h >> 33, h *= 0xff51afd7ed558ccdULL, h ^= h >> 33;
  return static_cast<float>(static_cast<int64_t>(h % 20001) - 10000) * 1e-4f;
}

float Initial(int t, int64_t e) { return Gradient(0, 0, 0, t, e) * 0.5f; }

JobSpec Spec(int world, int stage, int parts) {
  JobSpec spec;
  spec.job = "step-test";
  spec.uuid = "u";
  spec.layout = *Layout::Create({{{"a", {700, 3}}, {"b", {}}, {"empty", {0, 4}}},
                                 {{"c", {5}}, {"d", {256}}, {"e", {1000}}},
                                 {{"big", {40, 300}}},
                                 {{"frozen", {300}, DType::kFloat32, 0, false}}});
  spec.optimizer = OptimizerKind::kAdamW;
  spec.groups = {"all"};
  spec.world_size = world;
  spec.stage = stage;
  spec.parts = parts;
  spec.nominal_samples = 2;
  return spec;
}

GroupScalars Scalars() {
  GroupScalars s{};
  s[kLr] = 1e-2, s[kBeta1] = 0.9, s[kBeta2] = 0.95, s[kEps] = 1e-8, s[kWeightDecay] = 0.1;
  return s;
}

// The same arithmetic on one flat array: what one process would hold.
class Oracle {
 public:
  explicit Oracle(const JobSpec& spec) : spec_(spec) {
    const int64_t n = spec.layout.total_blocks() * kBlockElements;
    p_.assign(n, 0), m_.assign(n, 0), v_.assign(n, 0);
    for (const TensorInfo& t : spec.layout.tensors()) {
      for (int64_t e = 0; e < t.numel; ++e) p_[t.blocks.begin * kBlockElements + e] = Initial(t.index, e);
    }
  }
  // Gradients of parts and ranks summed as the owners do it; tensors in `absent` get none.
  void Step(uint64_t step, int parts, double max_norm, int absent) {
    const int world = spec_.world_size;
    std::vector<std::vector<float>> g(spec_.layout.tensors().size());
    ExactSum squares;
    for (const TensorInfo& t : spec_.layout.tensors()) {
      if (!t.spec.trainable || t.index == absent) continue;
      g[t.index].assign(t.blocks.size() * kBlockElements, 0);
      for (int part = 0; part < parts; ++part) {
        for (int64_t e = 0; e < t.numel; ++e) {
          float sum = Gradient(step, part, 0, t.index, e);
          for (int r = 1; r < world; ++r) sum += Gradient(step, part, r, t.index, e);
          float& into = g[t.index][e];
          into = part == 0 ? sum : into + sum;
        }
      }
      for (int64_t b = 0; b < t.blocks.size(); ++b) {
        double sumsq;
        std::vector<float> out(kBlockElements + 16);
        float* aligned = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(out.data()) + 63) / 64 * 64);
        std::vector<float> in(kBlockElements + 16);
        float* source = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(in.data()) + 63) / 64 * 64);
        std::memcpy(source, &g[t.index][b * kBlockElements], kBlockElements * 4);
        kernels::Source s{source, 1.0f};
        kernels::ReduceBlocksScalar(&s, 1, false, aligned, 1, &sumsq, false);
        squares.Add(sumsq);
      }
    }
    const double mean = 1.0 / (world * parts);
    norm_ = std::sqrt(squares.Value()) * mean;
    const double clip = max_norm > 0 ? std::min(1.0, max_norm / (norm_ + 1e-6)) : 1.0;
    kernels::Hyper h;
    h.lr = 1e-2, h.beta1 = 0.9, h.beta2 = 0.95, h.eps = 1e-8, h.weight_decay = 0.1;
    for (const TensorInfo& t : spec_.layout.tensors()) {
      if (g[t.index].empty() || t.blocks.empty()) continue;
      const auto s = kernels::Prepare(kernels::OptimizerKind::kAdamW, h, ++steps_[t.index],
                                      static_cast<float>(mean * clip));
      const int64_t at = t.blocks.begin * kBlockElements;
      kernels::UpdateArgs args{&p_[at], {&m_[at], &v_[at]}, g[t.index].data()};
      kernels::ResolveScalar(kernels::OptimizerKind::kAdamW)(args, s, t.blocks.size() * kBlockElements);
    }
  }
  const std::vector<float>& p() const { return p_; }
  const std::vector<float>& m() const { return m_; }
  double norm() const { return norm_; }

 private:
  const JobSpec spec_;
  std::vector<float> p_, m_, v_;
  std::map<int, uint64_t> steps_;
  double norm_ = 0;
};

void Initialise(InProcessJob& job) {
  for (const TensorInfo& t : job.memory().layout().tensors()) {
    for (int64_t e = 0; e < t.numel; ++e) {
      job.memory().plane(0)[t.blocks.begin * kBlockElements + e] = Initial(t.index, e);
    }
  }
  job.memory().control().initialized.store(1);
}

// What a trainer does until step `last` is done; `absent` gets no gradient on step 2. `die` is asked before
// each act: true ends the trainer there and then, and leaves everything as it stands.
void Train(
    InProcessJob& job, int rank, uint64_t last, int parts, double max_norm, int absent,
    std::vector<double>* norms, const std::function<bool()>& die = [] { return false; }) {
  std::unique_ptr<runtime::JobMemory> memory = job.OpenAsTrainer();
  client::StepWriter writer(memory.get(), Rank(rank), {});
  auto start = writer.Resume();
  ASSERT_TRUE(start.ok()) << start.status();
  // The blob is that of the last step whether this trainer or a dead one recorded it.
  const uint64_t before = start->next.step.value() - 1;
  ASSERT_EQ(start->blob, before == 0 ? "" : absl::StrCat("blob ", before, " ", rank));
  const Layout& layout = memory->layout();
  while (writer.current().step.value() <= last) {
    const uint64_t step = writer.current().step.value();
    client::StepWriter::Record record;
    record.has_grad.resize((layout.tensors().size() + 63) / 64);
    for (int part = 0; part < parts; ++part) {
      writer.BeginPart(1.0f);
      // Ranks deliver in different orders.
      for (size_t i = 0; i < layout.units().size(); ++i) {
        const int u = rank % 2 == 0 ? static_cast<int>(layout.units().size() - 1 - i) : static_cast<int>(i);
        const UnitInfo& unit = layout.units()[u];
        if (!layout.tensors()[unit.first_tensor].spec.trainable) continue;
        if (die()) return;
        auto to = writer.Stage(u);
        ASSERT_TRUE(to.ok()) << to.status();
        for (int t = unit.first_tensor; t < unit.end_tensor; ++t) {
          const TensorInfo& info = layout.tensors()[t];
          const bool none = step == 2 && t == absent;
          if (!none) SetBit(record.has_grad, t);
          if (die()) return;
          for (int64_t e = 0; e < info.numel && *to != nullptr; ++e) {
            (*to)[(info.blocks.begin - unit.blocks.begin) * kBlockElements + e] =
                none ? 0 : Gradient(step, part, rank, t, e);
          }
        }
        if (die()) return;
        writer.Deliver(u);
      }
      if (die()) return;
      ASSERT_TRUE(writer.EndPart().ok());
    }
    record.samples = 2;
    record.weight = parts;
    record.loss = rank;
    record.max_grad_norm = max_norm;
    record.groups = {Scalars()};
    if (die()) return;
    auto verdict = writer.Finish(record, absl::StrCat("blob ", step, " ", rank));
    ASSERT_TRUE(verdict.ok()) << verdict.status();
    ASSERT_EQ(verdict->kind, VerdictKind::kCommit) << verdict->reason;
    if (norms != nullptr) norms->push_back(verdict->grad_norm);
  }
}

class StepTest : public ::testing::TestWithParam<std::tuple<int, int, int, int>> {};

TEST_P(StepTest, EqualsOneProcessBitForBit) {
  const auto [stage, world, servers, parts] = GetParam();
  if (stage < 2 && parts > 1) GTEST_SKIP() << "stages 0 and 1 accumulate in the trainer";
  const JobSpec spec = Spec(world, stage, parts);
  InProcessJob job(spec, servers, /*workers=*/servers == 2 ? 2 : 1);
  Initialise(job);
  Oracle oracle(spec);
  constexpr int kSteps = 6;
  std::vector<double> norms;
  std::vector<std::thread> trainers;
  const int absent = 4;
  for (int r = 0; r < world; ++r) {
    trainers.emplace_back([&, r] { Train(job, r, kSteps, parts, 0.5, absent, r == 0 ? &norms : nullptr); });
  }
  for (std::thread& t : trainers) t.join();
  for (int s = 1; s <= kSteps; ++s) {
    oracle.Step(s, parts, 0.5, s == 2 ? absent : -1);
    ASSERT_EQ(norms[s - 1], oracle.norm()) << s;
  }
  for (const TensorInfo& t : spec.layout.tensors()) {
    if (t.blocks.empty()) continue;
    const int64_t at = t.blocks.begin * kBlockElements;
    EXPECT_EQ(std::memcmp(&oracle.p()[at], job.memory().plane(0) + at, t.numel * 4), 0) << t.spec.name;
    if (!t.spec.trainable) continue;
    EXPECT_EQ(std::memcmp(&oracle.m()[at], job.memory().plane(1) + at, t.numel * 4), 0) << t.spec.name;
  }
}

INSTANTIATE_TEST_SUITE_P(All, StepTest,
                         ::testing::Combine(::testing::Values(0, 1, 2), ::testing::Values(1, 2, 3),
                                            ::testing::Values(1, 2, 5), ::testing::Values(1, 3)));

TEST(StepTest, OwnersMayStopAndResizeAtAnyTime) {
  const JobSpec spec = Spec(2, 2, 2);
  InProcessJob job(spec, 2);
  Initialise(job);
  constexpr int kSteps = 400;
  std::vector<std::thread> trainers;
  for (int r = 0; r < 2; ++r) trainers.emplace_back([&, r] { Train(job, r, kSteps, 2, 0.5, -1, nullptr); });
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  std::mt19937 rng(seed);
  const int sizes[] = {3, 1, 4, 2};
  for (int i = 0; i < 4; ++i) {
    // Wait for the steps themselves, not for time.
    const uint64_t until = (i + 1) * 60 + rng() % 20;
    while (job.memory().DoneByAll()->step.value() < until)
      job.RestartOwner(static_cast<int>(rng() % job.servers()));
    job.Resize(sizes[i]);
  }
  for (std::thread& t : trainers) t.join();
  Oracle oracle(spec);
  for (int s = 1; s <= kSteps; ++s) oracle.Step(s, 2, 0.5, -1);
  for (const TensorInfo& t : spec.layout.tensors()) {
    if (t.blocks.empty()) continue;
    const int64_t at = t.blocks.begin * kBlockElements;
    EXPECT_EQ(std::memcmp(&oracle.p()[at], job.memory().plane(0) + at, t.numel * 4), 0) << t.spec.name;
  }
  EXPECT_EQ(job.memory().control().Newest()->servers, 2);
}

// Each rank has nothing for one unit and a late part for the other: neither may wait for the other's first
// part.
TEST(StepTest, LatePartsOfDifferentUnitsDoNotWaitForEachOther) {
  const JobSpec spec = Spec(2, 2, 1);
  InProcessJob job(spec, 2);
  Initialise(job);
  std::vector<std::thread> trainers;
  for (int r = 0; r < 2; ++r) {
    trainers.emplace_back([&, r] {
      std::unique_ptr<runtime::JobMemory> memory = job.OpenAsTrainer();
      client::StepWriter::Options options;
      options.timeout = absl::Seconds(20);
      client::StepWriter writer(memory.get(), Rank(r), options);
      ASSERT_TRUE(writer.Resume().ok());
      for (int step = 0; step < 5; ++step) {
        writer.BeginPart(1.0f);
        for (int part = 0; part < 2; ++part) {
          if (part == 1) writer.BeginLatePart(1.0f);
          auto to = writer.Stage(r);
          ASSERT_TRUE(to.ok()) << to.status();
          const BlockRange blocks = spec.layout.units()[r].blocks;
          std::fill_n(*to, blocks.size() * kBlockElements, 0.0f);
          writer.Deliver(r);
          if (part == 0) {
            ASSERT_TRUE(writer.EndPart().ok());
          }
        }
        client::StepWriter::Record record;
        record.samples = 1, record.weight = 1;
        record.groups = {Scalars()};
        record.has_grad.resize(1);
        ASSERT_TRUE(writer.Finish(record, "").ok());
      }
    });
  }
  for (std::thread& t : trainers) t.join();
  EXPECT_EQ(job.memory().DoneByAll()->step, Step(5));
}

TEST(StepTest, MoreUnitsMayBeOpenThanTheRingHasRoomFor) {
  const JobSpec spec = Spec(1, 2, 1);
  InProcessJob job(spec, 1);
  Initialise(job);
  std::unique_ptr<runtime::JobMemory> memory = job.OpenAsTrainer();
  client::StepWriter::Options options;
  options.timeout = absl::Seconds(20);
  options.ring_bytes = 1;  // room for the largest unit
  client::StepWriter writer(memory.get(), Rank(0), options);
  ASSERT_TRUE(writer.Resume().ok());
  for (int step = 0; step < 3; ++step) {
    writer.BeginPart(1.0f);
    for (int u = 0; u < 3; ++u) {
      auto to = writer.Stage(u);
      ASSERT_TRUE(to.ok()) << to.status();
      std::fill_n(*to, spec.layout.units()[u].blocks.size() * kBlockElements, 0.0f);
    }
    for (int u = 0; u < 3; ++u) writer.Deliver(u);
    ASSERT_TRUE(writer.EndPart().ok());
    client::StepWriter::Record record;
    record.samples = 1, record.weight = 1;
    record.groups = {Scalars()};
    record.has_grad.resize(1);
    ASSERT_TRUE(writer.Finish(record, "").ok());
  }
  EXPECT_GT(writer.ring_growths(), 0);
  EXPECT_EQ(job.memory().DoneByAll()->step, Step(3));
}

TEST(StepTest, TrainersMayDieBetweenAnyTwoActs) {
  const unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  for (const auto& [stage, parts] : {std::make_pair(1, 1), std::make_pair(2, 1), std::make_pair(2, 3)}) {
    const JobSpec spec = Spec(2, stage, parts);
    InProcessJob job(spec, 2);
    Initialise(job);
    constexpr int kSteps = 30;
    std::vector<std::thread> trainers;
    for (int r = 0; r < 2; ++r) {
      trainers.emplace_back([&, r, stage = stage, parts = parts] {
        std::mt19937 rng(seed + 10 * stage + r);
        for (int deaths = 0; deaths < 25; ++deaths) {
          int acts = static_cast<int>(rng() % 60);
          Train(job, r, kSteps, parts, 0.5, -1, nullptr, [&] { return acts-- == 0; });
        }
        Train(job, r, kSteps, parts, 0.5, -1, nullptr);
      });
    }
    for (std::thread& t : trainers) t.join();
    Oracle oracle(spec);
    for (int s = 1; s <= kSteps; ++s) oracle.Step(s, parts, 0.5, -1);
    for (const TensorInfo& t : spec.layout.tensors()) {
      if (t.blocks.empty()) continue;
      const int64_t at = t.blocks.begin * kBlockElements;
      EXPECT_EQ(std::memcmp(&oracle.p()[at], job.memory().plane(0) + at, t.numel * 4), 0)
          << t.spec.name << " stage " << stage << " parts " << parts;
    }
  }
}

}  // namespace
}  // namespace sherd::tests
