#include "kernels/muon.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/gemm.h"
#include "kernels/simd_targets_for_test.h"
#include "kernels/test_data.h"

namespace sherd {
namespace kernels {
namespace {

constexpr int kSteps = 100;

struct GoldenMatrix {
  int rows, columns;
  double lr, momentum;
  bool nesterov;
  double weight_decay;
  float param[32], buffer[32];
};

const GoldenMatrix kGolden[] = {
#include "kernels/testdata/muon_vectors.inc"
};

// As value() of testdata/vectors.py.
float Value(uint32_t step, uint32_t i) {
  const uint32_t x = (step * 1000003u + i * 7919u + 12345u) * 2654435761u;
  return (static_cast<int>(x >> 16) - 32768) / 32768.0f;
}

TEST(Muon, AgreesWithNumPyAfter100Steps) {
  for (const GoldenMatrix& c : kGolden) {
    Hyper h;
    h.lr = c.lr, h.momentum = c.momentum, h.nesterov = c.nesterov, h.weight_decay = c.weight_decay;
    h.eps = 1e-7;
    const int n = c.rows * c.columns;
    Floats param(kBlockElements), momentum(kBlockElements), grad(kBlockElements), direction(kBlockElements);
    for (int i = 0; i < n; ++i) param[i] = Value(0, i);
    for (int step = 1; step <= kSteps; ++step) {
      for (int i = 0; i < n; ++i) grad[i] = Value(step, i) / 8 * 1024;
      const UpdateArgs args = {param.data(), {momentum.data()}, grad.data()};
      const MuonScalars s = PrepareMuon(h, c.rows, c.columns, 1.0f / 1024);
      MuonDirection(args, s, c.rows, c.columns, 5, direction.data());
      MuonUpdate(args, direction.data(), s, kBlockElements);
    }
    for (int i = 0; i < n; ++i) {
      EXPECT_NEAR(param[i], c.param[i], 1e-5 * std::fabs(c.param[i]) + 1e-6) << c.rows << " element " << i;
      EXPECT_NEAR(momentum[i], c.buffer[i], 1e-5 * std::fabs(c.buffer[i]) + 1e-7)
          << c.rows << " element " << i;
    }
    for (int i = n; i < kBlockElements; ++i) ASSERT_EQ(param[i], 0) << "padding";
  }
}

TEST(Muon, TheDirectionIsNearlyOrthogonal) {
  std::mt19937_64 random(3);
  const int64_t rows = 24, columns = 40;
  Floats grad(4 * kBlockElements), momentum(4 * kBlockElements), direction(4 * kBlockElements);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < rows * columns; ++i) grad[i] = normal(random);
  const UpdateArgs args = {nullptr, {momentum.data()}, grad.data()};
  Hyper h;
  MuonDirection(args, PrepareMuon(h, rows, columns, 1), rows, columns, 10, direction.data());
  for (int64_t a = 0; a < rows; ++a) {
    double length = 0;
    for (int64_t c = 0; c < columns; ++c) length += std::pow(direction[a * columns + c], 2);
    EXPECT_NEAR(std::sqrt(length), 1, 0.35);
  }
}

TEST(Muon, ZerosStayZeros) {
  Floats grad(kBlockElements), momentum(kBlockElements), direction(kBlockElements);
  MuonDirection({nullptr, {momentum.data()}, grad.data()}, PrepareMuon(Hyper(), 4, 4, 1), 4, 4, 5,
                direction.data());
  for (int i = 0; i < kBlockElements; ++i) ASSERT_EQ(direction[i], 0);
}

TEST(Gemm, EveryInstructionSetGivesTheBitsOfThePlainLoop) {
  std::mt19937_64 random(7);
  for (const auto& [m, k, n] : std::vector<std::tuple<int, int, int>>{
           {1, 1, 1}, {4, 3, 16}, {5, 7, 33}, {13, 40, 50}, {8, 129, 64}}) {
    const int64_t ldb = PaddedColumns(n);
    const Floats a = RandomFloats(m * k, random, false), b = RandomFloats(k * ldb, random, false);
    Floats want(m * ldb), got(m * ldb), scratch(GemmScratch(k));
    GemmScalar(a.data(), k, b.data(), ldb, m, k, ldb, want.data(), ldb);
    EXPECT_GE(ForEachSimdTarget([&, k = k, m = m] {
                Gemm(a.data(), k, b.data(), ldb, m, k, ldb, scratch.data(), got.data(), ldb);
                EXPECT_TRUE(SameBits(got.data(), want.data(), m * ldb));
              }),
              1);
  }
}

}  // namespace
}  // namespace kernels
}  // namespace sherd
