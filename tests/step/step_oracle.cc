#include "tests/step/step_oracle.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/convert.h"
#include "kernels/muon.h"
#include "kernels/optimizer.h"
#include "kernels/reduce.h"
#include "kernels/trust_ratio.h"
#include "runtime/kernel_types.h"

namespace sherd::tests {
namespace {

// Gradient of element `e` of tensor `t` at a step, micro-batch and rank: any numbers that differ.
float Gradient(uint64_t step, int micro, int rank, int t, int64_t e) {
  uint64_t h = step * 1000003 + micro * 7919 + rank * 104729 + t * 1299709 + e * 15485863 + 12345;
  h ^= h >> 33, h *= 0xff51afd7ed558ccdULL, h ^= h >> 33;
  return static_cast<float>(static_cast<int64_t>(h % 20001) - 10000) * 1e-4f;
}

float Initial(int t, int64_t e) { return Gradient(0, 0, 0, t, e) * 0.5f; }

// As backward on a scaled loss leaves it, in fp32.
float Scaled(const JobSpec& spec, const StepPlan& plan, double scale, uint64_t step, int micro, int rank,
             int t, int64_t e) {
  if (t == 0 && e == 5 && micro == 0 && rank == spec.world_size - 1 && plan.overflows.count(step) != 0) {
    return std::numeric_limits<float>::infinity();
  }
  return Gradient(step, micro, rank, t, e) * static_cast<float>(scale);
}

// To the nearest value of `dtype`.
float Through(DType dtype, float value) {
  char stored[4];
  float back;
  kernels::FromFloat(&value, 1, runtime::KernelType(dtype), stored);
  kernels::ToFloat(runtime::KernelType(dtype), stored, 1, &back);
  return back;
}

double SumSquares(const float* block) {
  alignas(64) float in[kBlockElements], out[kBlockElements];
  std::memcpy(in, block, sizeof in);
  const kernels::Source source{in, 1.0f};
  double sumsq = 0;
  kernels::ReduceBlocksScalar(&source, 1, false, out, 1, &sumsq, false);
  return sumsq;
}

}  // namespace

JobSpec StepSpec(int world, int stage, int parts, OptimizerKind optimizer) {
  JobSpec spec;
  spec.job = "step-test";
  spec.uuid = "u";
  spec.layout = *Layout::Create({{{"a", {700, 3}}, {"b", {}}, {"empty", {0, 4}}},
                                 {{"c", {5}}, {"d", {256}}, {"e", {1000}}},
                                 {{"big", {40, 300}}},
                                 {{"frozen", {300}, DType::kFloat32, 0, false}}});
  spec.optimizer = optimizer;
  spec.groups = {"all"};
  spec.world_size = world;
  spec.stage = stage;
  spec.parts = parts;
  spec.nominal_samples = 2;
  return spec;
}

GroupScalars StepScalars() {
  GroupScalars s{};
  s[kLr] = 1e-2, s[kBeta1] = 0.9, s[kBeta2] = 0.95, s[kEps] = 1e-8, s[kWeightDecay] = 0.1;
  s[kMinCoeff] = 0.01, s[kMaxCoeff] = 10;
  s[kMomentum] = 0.9, s[kNesterov] = 1, s[kNsSteps] = 3;
  return s;
}

StepOracle::StepOracle(const JobSpec& spec)
    : spec_(spec), world_size_(spec.world_size), loss_scale_(FirstLossScale(spec.loss_scale)) {
  const int64_t n = spec.layout.total_blocks() * kBlockElements;
  p_.assign(n, 0), m_.assign(n, 0), v_.assign(n, 0);
  for (const TensorInfo& t : spec.layout.tensors()) {
    for (int64_t e = 0; e < t.numel; ++e) p_[t.blocks.begin * kBlockElements + e] = Initial(t.index, e);
  }
  if (spec.compute == DType::kFloat32) return;
  compute_.resize(n);
  kernels::FromFloat(p_.data(), n, runtime::KernelType(spec.compute), compute_.data());
}

std::vector<float> StepOracle::Reduced(uint64_t step, const TensorInfo& t, const StepPlan& plan) const {
  std::vector<float> g(t.blocks.size() * kBlockElements);
  const auto of = [&](int part, int rank, int64_t e) {
    return Through(spec_.staging, Scaled(spec_, plan, loss_scale_.scale, step, part, rank, t.index, e));
  };
  for (int v = 0; v < plan.virtual_ranks; ++v) {
    for (int64_t e = 0; e < t.numel; ++e) g[e] = v == 0 ? of(0, v, e) : g[e] + of(0, v, e);
  }
  const ReductionTree& tree = spec_.reduction;
  for (int part = 0; part < plan.parts && plan.virtual_ranks == 0; ++part) {
    for (int64_t e = 0; e < t.numel; ++e) {
      float sum = 0;
      for (int group = 0; group < tree.size(); ++group) {
        const ReductionTree::Ranks ranks = tree.RanksOf(group, world_size_);
        float partial = of(part, ranks.first, e);
        for (int r = ranks.first + 1; r < ranks.end; ++r) partial += of(part, r, e);
        if (tree.size() > 1) partial = Through(tree.wire, partial);
        sum = group == 0 ? partial : sum + partial;
      }
      g[e] = part == 0 ? sum : g[e] + sum;
    }
  }
  return g;
}

void StepOracle::Update(const TensorInfo& t, const std::vector<float>& grad, float grad_scale) {
  kernels::Hyper h;
  h.lr = 1e-2, h.beta1 = 0.9, h.beta2 = 0.95, h.eps = 1e-8, h.weight_decay = 0.1;
  h.momentum = 0.9, h.nesterov = true;
  const OptimizerKind kind = spec_.optimizer;
  const int64_t at = t.blocks.begin * kBlockElements, elements = t.blocks.size() * kBlockElements;
  const kernels::UpdateArgs args{&p_[at], {&m_[at], &v_[at]}, grad.data()};
  const uint64_t updates = ++steps_[t.index];
  if (kind == OptimizerKind::kMuon && t.spec.shape.size() >= 2) {
    const int64_t rows = t.spec.shape[0], columns = t.spec.shape[1];
    const kernels::MuonScalars s = kernels::PrepareMuon(h, rows, columns, grad_scale);
    std::vector<float> direction(elements);
    kernels::MuonDirection(args, s, rows, columns, 3, direction.data());
    kernels::MuonUpdate(args, direction.data(), s, elements);
    return;
  }
  if (const kernels::NormsFn norms = kernels::ResolveNormsScalar(kind); norms != nullptr) {
    const kernels::Scalars s = kernels::Prepare(kind, h, updates, grad_scale);
    double values = 0, direction = 0;
    for (int64_t e = 0; e < elements; e += kBlockElements) {
      double of_block[2];
      norms({args.param + e, {args.planes[0] + e, args.planes[1] + e}, args.grad + e}, s, of_block);
      values += of_block[0], direction += of_block[1];
    }
    h.lr *= kernels::TrustRatio(values, direction, h.min_coeff, h.max_coeff);
  }
  kernels::ResolveScalar(kind)(args, kernels::Prepare(kind, h, updates, grad_scale), elements);
}

void StepOracle::Step(uint64_t step, const StepPlan& plan) {
  const int absent = step == 2 ? plan.absent : -1;
  std::vector<std::vector<float>> g(spec_.layout.tensors().size());
  ExactSum squares;
  for (const TensorInfo& t : spec_.layout.tensors()) {
    if (!t.spec.trainable || t.index == absent) continue;
    g[t.index] = Reduced(step, t, plan);
    for (int64_t b = 0; b < t.blocks.size(); ++b) squares.Add(SumSquares(&g[t.index][b * kBlockElements]));
  }
  const int deliveries = plan.virtual_ranks > 0 ? plan.virtual_ranks : world_size_ * plan.parts;
  const double mean = 1.0 / (deliveries * loss_scale_.scale);
  norm_ = std::sqrt(squares.Value()) * mean;
  const bool skip = !std::isfinite(norm_);
  loss_scale_ = NextLossScale(spec_.loss_scale, loss_scale_, skip);
  if (skip) return;
  const double clip = plan.max_norm > 0 ? std::min(1.0, plan.max_norm / (norm_ + 1e-6)) : 1.0;
  for (const TensorInfo& t : spec_.layout.tensors()) {
    if (g[t.index].empty() || t.blocks.empty()) continue;
    Update(t, g[t.index], static_cast<float>(mean * clip));
    const int64_t at = t.blocks.begin * kBlockElements;
    for (int64_t i = at; i < t.blocks.end * kBlockElements && !compute_.empty(); ++i) {
      const uint32_t noise = kernels::Noise({spec_.rounding_seed, steps_[t.index]}, i);
      if (spec_.compute == DType::kBFloat16) {
        compute_[i] = spec_.stochastic_rounding ? kernels::Bf16FromFloatDithered(p_[i], noise)
                                                : kernels::Bf16FromFloat(p_[i]);
      } else {
        compute_[i] = spec_.stochastic_rounding ? kernels::Fp16FromFloatDithered(p_[i], noise)
                                                : kernels::Fp16FromFloat(p_[i]);
      }
    }
  }
}

void Initialise(InProcessJob& job) {
  runtime::JobMemory& memory = job.memory();
  for (const TensorInfo& t : memory.layout().tensors()) {
    for (int64_t e = 0; e < t.numel; ++e) {
      memory.plane(0)[t.blocks.begin * kBlockElements + e] = Initial(t.index, e);
    }
  }
  if (memory.compute() != nullptr) {
    kernels::FromFloat(memory.plane(0), memory.layout().total_blocks() * kBlockElements,
                       runtime::KernelType(memory.spec().compute), memory.compute());
  }
  memory.control().initialized.store(1);
}

void ExpectEqual(InProcessJob& job, const StepOracle& oracle) {
  runtime::JobMemory& memory = job.memory();
  for (const TensorInfo& t : memory.layout().tensors()) {
    if (t.blocks.empty()) continue;
    const int64_t at = t.blocks.begin * kBlockElements;
    EXPECT_EQ(std::memcmp(&oracle.p()[at], memory.plane(0) + at, t.numel * 4), 0) << t.spec.name;
    if (memory.compute() != nullptr) {
      EXPECT_EQ(std::memcmp(&oracle.compute()[at], memory.compute() + at, t.numel * 2), 0)
          << t.spec.name << " in 16 bits";
    }
    if (!t.spec.trainable) continue;
    EXPECT_EQ(std::memcmp(&oracle.m()[at], memory.plane(1) + at, t.numel * 4), 0) << t.spec.name;
  }
}

void Train(InProcessJob& job, int rank, uint64_t last, const StepPlan& plan, std::vector<Verdict>* verdicts,
           const std::function<bool()>& die) {
  std::unique_ptr<runtime::JobMemory> memory = job.OpenAsTrainer();
  client::StepWriter writer(memory.get(), Rank(rank), {});
  auto start = writer.Resume();
  if (start.ok() && start->joining) start = writer.Join(1);
  ASSERT_TRUE(start.ok()) << start.status();
  // The blob is that of the last step whether this trainer or a dead one recorded it.
  const uint64_t before = start->next.step.value() - 1;
  const std::optional<runtime::Assignment> then = memory->control().AssignmentFor(Step(before));
  const int blob_of = then.has_value() && then->world_size <= rank ? 0 : rank;  // it was not there
  ASSERT_EQ(start->blob, before == 0 ? "" : absl::StrCat("blob ", before, " ", blob_of));
  const Layout& layout = memory->layout();
  const JobSpec& spec = memory->spec();
  while (writer.in_world() && writer.current().step.value() <= last) {
    // Every act may find that the step was given up.
    bool given_up = false;
    const auto went_on = [&](const absl::Status& status) {
      given_up = absl::IsAborted(status);
      if (given_up) {
        EXPECT_TRUE(writer.StartOver().ok());
      }
      return status.ok();
    };
    const uint64_t step = writer.current().step.value();
    const int parts = plan.virtual_ranks > 0 ? plan.virtual_ranks / writer.world_size() : plan.parts;
    writer.set_parts(parts);
    client::StepWriter::Record record;
    record.has_grad.resize((layout.tensors().size() + 63) / 64);
    for (int part = 0; part < parts && !given_up; ++part) {
      // Whose gradients these are, in a count that does not know the world.
      const int micro = plan.virtual_ranks > 0 ? 0 : part;
      const int whose = plan.virtual_ranks > 0 ? part * writer.world_size() + rank : rank;
      writer.BeginPart(1.0f);
      // Ranks deliver in different orders.
      for (size_t i = 0; i < layout.units().size(); ++i) {
        const int u = rank % 2 == 0 ? static_cast<int>(layout.units().size() - 1 - i) : static_cast<int>(i);
        const UnitInfo& unit = layout.units()[u];
        if (!layout.tensors()[unit.first_tensor].spec.trainable) continue;
        if (die()) return;
        absl::StatusOr<void*> to = writer.Stage(u);
        if (!went_on(to.status()) && given_up) break;
        ASSERT_TRUE(to.ok()) << to.status();
        for (int t = unit.first_tensor; t < unit.end_tensor; ++t) {
          const TensorInfo& info = layout.tensors()[t];
          const bool none = step == 2 && t == plan.absent;
          if (!none) SetBit(record.has_grad, t);
          if (die()) return;
          for (int64_t e = 0; e < info.numel && *to != nullptr; ++e) {
            const float g =
                none ? 0 : Scaled(spec, plan, writer.loss_scale().scale, step, micro, whose, t, e);
            const int64_t at = (info.blocks.begin - unit.blocks.begin) * kBlockElements + e;
            kernels::FromFloat(&g, 1, runtime::KernelType(spec.staging),
                               static_cast<char*>(*to) + at * SizeOf(spec.staging));
          }
        }
        if (die()) return;
        writer.Deliver(u);
      }
      if (die()) return;
      if (given_up) break;
      const absl::Status ended = writer.EndPart();
      ASSERT_TRUE(went_on(ended) || given_up) << ended;
    }
    if (given_up) continue;
    record.samples = 2;
    record.weight = parts;
    record.loss = rank;
    record.max_grad_norm = plan.max_norm;
    record.groups = {StepScalars()};
    if (die()) return;
    auto verdict = writer.Finish(record, absl::StrCat("blob ", step, " ", rank));
    if (!went_on(verdict.status()) && given_up) continue;
    ASSERT_TRUE(verdict.ok()) << verdict.status();
    const VerdictKind expected = plan.overflows.count(step) != 0 ? VerdictKind::kSkip : VerdictKind::kCommit;
    ASSERT_EQ(verdict->kind, expected) << step << ": " << verdict->reason;
    if (verdicts != nullptr) verdicts->push_back(*verdict);
  }
}

void TrainAndCompare(InProcessJob& job, uint64_t steps, const StepPlan& plan) {
  const JobSpec& spec = job.memory().spec();
  Initialise(job);
  std::vector<std::vector<Verdict>> verdicts(spec.world_size);
  std::vector<std::thread> trainers;
  for (int r = 0; r < spec.world_size; ++r) {
    trainers.emplace_back([&, r] { Train(job, r, steps, plan, &verdicts[r]); });
  }
  for (std::thread& t : trainers) t.join();
  StepOracle oracle(spec);
  for (uint64_t s = 1; s <= steps; ++s) {
    oracle.Step(s, plan);
    for (const std::vector<Verdict>& of_rank : verdicts) {
      ASSERT_EQ(of_rank.size(), steps);
      const Verdict& v = of_rank[s - 1];
      EXPECT_EQ(v.kind, plan.overflows.count(s) != 0 ? VerdictKind::kSkip : VerdictKind::kCommit) << s;
      if (v.kind == VerdictKind::kCommit) {
        EXPECT_EQ(v.grad_norm, oracle.norm()) << s;
      }
      EXPECT_EQ(v.loss_scale, oracle.loss_scale()) << "after step " << s;
    }
  }
  EXPECT_EQ(job.memory().CurrentLossScale().skipped, plan.overflows.size());
  ExpectEqual(job, oracle);
}

}  // namespace sherd::tests
