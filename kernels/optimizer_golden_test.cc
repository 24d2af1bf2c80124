// Values, not just agreement: against double precision written out here from the papers, against torch.optim
// where it has the optimizer, and against NumPy where it has not.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/optimizer.h"
#include "kernels/test_data.h"
#include "kernels/trust_ratio.h"

namespace sherd {
namespace kernels {
namespace {

constexpr int kElements = 8;
constexpr int kSteps = 100;

struct GoldenCase {
  const char* optimizer;
  Hyper hyper;
  float want[1 + kMaxPlanes][kElements];  // param, then planes
  int rows;                               // of want; plain SGD keeps no buffer in torch
};

const GoldenCase kCases[] = {
#include "kernels/testdata/paper_vectors.inc"
#include "kernels/testdata/torch_vectors.inc"
};

// As value() of testdata/vectors.py.
float Value(uint32_t step, uint32_t i) {
  const uint32_t x = (step * 1000003u + i * 7919u + 12345u) * 2654435761u;
  return (static_cast<int>(x >> 16) - 32768) / 32768.0f;
}

struct Reference {
  double param, m = 0, v = 0;

  void Step(OptimizerKind kind, const Hyper& h, int step, double g) {
    if (kind == OptimizerKind::kSgd) {
      g += h.weight_decay * param;
      m = step == 1 ? g : h.momentum * m + (1 - h.dampening) * g;
      if (h.momentum == 0) m = g;
      param -= h.lr * (h.nesterov ? g + h.momentum * m : m);
      return;
    }
    if (kind == OptimizerKind::kAdagrad) {
      g += h.weight_decay * param;
      m += (step == 1 ? h.initial_accumulator_value : 0) + g * g;
      param -= h.lr / (1 + (step - 1) * h.lr_decay) * g / (std::sqrt(m) + h.eps);
      return;
    }
    if (kind == OptimizerKind::kLion) {
      const double mixed = h.beta1 * m + (1 - h.beta1) * g;
      param -= h.lr * ((mixed > 0) - (mixed < 0) + h.weight_decay * param);
      m = h.beta2 * m + (1 - h.beta2) * g;
      return;
    }
    if (kind == OptimizerKind::kAdam) g += h.weight_decay * param;
    if (kind == OptimizerKind::kAdamW) param -= h.lr * h.weight_decay * param;
    m = h.beta1 * m + (1 - h.beta1) * g;
    v = h.beta2 * v + (1 - h.beta2) * g * g;
    const double m_hat = m / (1 - std::pow(h.beta1, step));
    const double v_hat = v / (1 - std::pow(h.beta2, step));
    param -= h.lr * m_hat / (std::sqrt(v_hat) + h.eps);
  }
};

void ExpectClose(double got, double want, const char* what, int i) {
  // Relative, down to where fp32 cancellation in sums of terms near 1 leaves nothing to compare.
  EXPECT_NEAR(got, want, 1e-5 * std::fabs(want) + 1e-7) << what << " element " << i;
}

struct Trained {
  explicit Trained(const GoldenCase& c, float loss_scale) : kind(FindOptimizer(c.optimizer)->kind) {
    for (int i = 0; i < kElements; ++i) param[i] = Value(0, i);
    for (int step = 1; step <= kSteps; ++step) {
      for (int i = 0; i < kElements; ++i) grad[i] = Value(step, i) / 8 * loss_scale;
      const UpdateArgs args = {param.data(), {a.data(), b.data(), nullptr}, grad.data()};
      Hyper h = c.hyper;
      if (const TwoPasses passes = ResolveTwoPasses(kind); passes.move != nullptr) {
        double norms[2];
        std::atomic<uint64_t> saved{0};
        passes.move(args, grad.data(), Prepare(kind, h, step, 1 / loss_scale), undo.data(), &saved, norms);
        h.lr *= TrustRatio(norms[0], norms[1], h.min_coeff, h.max_coeff);  // the elements are one tensor
        passes.follow(param.data(), grad.data(), Prepare(kind, h, step, 1 / loss_scale), undo.data(), &saved);
        continue;
      }
      Resolve(kind)(args, Prepare(kind, h, step, 1 / loss_scale), kBlockElements);
    }
  }
  OptimizerKind kind;
  Floats param{kBlockElements}, a{kBlockElements}, b{kBlockElements}, grad{kBlockElements},
      undo{kMaxUndoElements};
};

TEST(OptimizerGolden, AgreesWithTorchOrNumPyAfter100Steps) {
  for (const GoldenCase& c : kCases) {
    SCOPED_TRACE(::testing::Message() << c.optimizer << " weight_decay " << c.hyper.weight_decay
                                      << " momentum " << c.hyper.momentum);
    const Trained run(c, 1);
    for (int i = 0; i < kElements; ++i) {
      ExpectClose(run.param[i], c.want[0][i], "param", i);
      if (c.rows > 1) ExpectClose(run.a[i], c.want[1][i], "first plane", i);
      if (c.rows > 2) ExpectClose(run.b[i], c.want[2][i], "second plane", i);
    }
  }
}

TEST(OptimizerGolden, AgreesWithDoublePrecisionAfter100Steps) {
  for (const GoldenCase& c : kCases) {
    SCOPED_TRACE(::testing::Message() << c.optimizer << " weight_decay " << c.hyper.weight_decay);
    const Trained run(c, 1);
    for (int i = 0; i < kElements; ++i) {
      if (run.kind == OptimizerKind::kLamb) continue;  // not element by element: paper_vectors.py
      Reference r = {Value(0, i)};
      for (int step = 1; step <= kSteps; ++step) r.Step(run.kind, c.hyper, step, Value(step, i) / 8.0);
      ExpectClose(run.param[i], r.param, "param", i);
      ExpectClose(run.a[i], r.m, "first plane", i);
      ExpectClose(run.b[i], r.v, "second plane", i);
    }
  }
}

TEST(OptimizerGolden, UnscalingByAPowerOfTwoChangesNoBit) {
  for (const GoldenCase& c : kCases) {
    const Trained plain(c, 1), scaled(c, 1024);
    EXPECT_TRUE(SameBits(plain.param.data(), scaled.param.data(), kBlockElements));
    EXPECT_TRUE(SameBits(plain.a.data(), scaled.a.data(), kBlockElements));
  }
}

}  // namespace
}  // namespace kernels
}  // namespace sherd
