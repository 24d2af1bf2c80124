// The GPU gives the bits of the plain loop. Skipped without --config=cuda or without a device.
#include <gtest/gtest.h>

#ifdef SHERD_CUDA
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/convert.h"
#include "kernels/cuda/launch.h"
#include "kernels/test_data.h"

namespace sherd {
namespace kernels {
namespace cuda {
namespace {

constexpr int64_t kBlocks = 7;
constexpr int64_t kElements = kBlocks * kBlockElements;

// A copy of host data in memory that both sides see.
template <typename T>
class Managed {
 public:
  explicit Managed(const AlignedArray<T>& from) {
    void* p = nullptr;
    Require(cudaMallocManaged(&p, from.size() * sizeof(T)) == cudaSuccess,
            "no memory for the test on the device");
    data_ = static_cast<T*>(p);
    std::memcpy(data_, from.data(), from.size() * sizeof(T));
  }
  ~Managed() { cudaFree(data_); }
  Managed(const Managed&) = delete;
  Managed& operator=(const Managed&) = delete;
  T* data() { return data_; }

 private:
  T* data_ = nullptr;
};

class Launch : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0) GTEST_SKIP() << "no CUDA device: " << cudaGetErrorString(error);
  }
};

TEST_F(Launch, ReduceGivesTheBitsOfThePlainLoop) {
  std::mt19937_64 random(11);
  for (bool special : {false, true}) {
    for (bool accumulate : {false, true}) {
      for (int n = 0; n <= 4; ++n) {
        SCOPED_TRACE(::testing::Message()
                     << "n " << n << " accumulate " << accumulate << " special " << special);
        std::vector<Floats> host;
        std::vector<std::unique_ptr<Managed<float>>> device;
        std::vector<Source> sources, device_sources;
        for (int k = 0; k < n; ++k) {
          host.push_back(RandomFloats(kElements, random, special));
          device.push_back(std::make_unique<Managed<float>>(host.back()));
        }
        for (int k = 0; k < n; ++k) {
          const bool null = k == 1;
          sources.push_back({null ? nullptr : host[k].data(), 0.25f * (k + 1)});
          device_sources.push_back({null ? nullptr : device[k]->data(), 0.25f * (k + 1)});
        }
        Floats out = RandomFloats(kElements, random, special);
        Doubles sumsq(kBlocks);
        Managed<float> device_out(out);
        Managed<double> device_sumsq(sumsq);
        ReduceBlocksScalar(sources.data(), n, accumulate, out.data(), kBlocks, sumsq.data(), false);
        ASSERT_EQ(LaunchReduceBlocks(device_sources.data(), n, accumulate, device_out.data(), kBlocks,
                                     device_sumsq.data(), nullptr),
                  cudaSuccess);
        ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
        EXPECT_TRUE(SameBits(device_out.data(), out.data(), kElements));
        EXPECT_TRUE(SameBits(device_sumsq.data(), sumsq.data(), kBlocks));
      }
    }
  }
}

TEST_F(Launch, ReduceTakesSixteenBits) {
  std::mt19937_64 random(13);
  for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    std::vector<AlignedArray<uint16_t>> host;
    std::vector<std::unique_ptr<Managed<uint16_t>>> device;
    std::vector<Source> sources, device_sources;
    for (int k = 0; k < 3; ++k) {
      host.emplace_back(kElements);
      FromFloat(RandomFloats(kElements, random, true).data(), kElements, dtype, host[k].data());
      device.push_back(std::make_unique<Managed<uint16_t>>(host[k]));
    }
    for (int k = 0; k < 3; ++k) {
      sources.push_back({host[k].data(), 0.25f * (k + 1), dtype});
      device_sources.push_back({device[k]->data(), 0.25f * (k + 1), dtype});
    }
    Floats out(kElements);
    Doubles sumsq(kBlocks);
    Managed<float> device_out(out);
    Managed<double> device_sumsq(sumsq);
    ReduceBlocksScalar(sources.data(), 3, false, out.data(), kBlocks, sumsq.data(), false);
    ASSERT_EQ(LaunchReduceBlocks(device_sources.data(), 3, false, device_out.data(), kBlocks,
                                 device_sumsq.data(), nullptr),
              cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_TRUE(SameBits(device_out.data(), out.data(), kElements));
    EXPECT_TRUE(SameBits(device_sumsq.data(), sumsq.data(), kBlocks));
  }
}

TEST_F(Launch, GroupsGiveTheBitsOfThePlainLoop) {
  std::mt19937_64 random(15);
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (DType wire : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      for (bool accumulate : {false, true}) {
        std::vector<std::unique_ptr<Managed<float>>> data;
        std::vector<Source> sources;
        for (int k = 0; k < 5; ++k) {
          Floats values(kElements);
          FromFloat(RandomFloats(kElements, random, true).data(), kElements, dtype, values.data());
          data.push_back(std::make_unique<Managed<float>>(values));
          sources.push_back({k == 2 ? nullptr : data[k]->data(), 0.25f * (k + 1), dtype});
        }
        // Of two, of one that is not there, and of two.
        const SourceGroup groups[] = {{&sources[0], 2}, {&sources[2], 1}, {&sources[3], 2}};
        Floats out = RandomFloats(kElements, random, true);
        Doubles sumsq(kBlocks);
        Managed<float> device_out(out);
        Managed<double> device_sumsq(sumsq);
        ReduceGroupsScalar(groups, 3, wire, accumulate, out.data(), kBlocks, sumsq.data(), false);
        ASSERT_EQ(LaunchReduceGroups(groups, 3, wire, accumulate, device_out.data(), kBlocks,
                                     device_sumsq.data(), nullptr),
                  cudaSuccess);
        ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
        EXPECT_TRUE(SameBits(device_out.data(), out.data(), kElements));
        EXPECT_TRUE(SameBits(device_sumsq.data(), sumsq.data(), kBlocks));
      }
    }
  }
}

TEST_F(Launch, UpdateStoresSixteenBitsInTheSamePass) {
  std::mt19937_64 random(14);
  constexpr OptimizerKind kKind = OptimizerKind::kAdamW;
  const Floats grad = RandomFloats(kElements, random, false);
  for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (bool stochastic : {false, true}) {
      Floats param = RandomFloats(kElements, random, false), a(kElements), b(kElements);
      Managed<float> device_param(param), device_a(a), device_b(b), device_grad(grad);
      AlignedArray<uint16_t> half(kElements);
      Managed<uint16_t> device_half(half);
      const Scalars s = Prepare(kKind, Hyper(), 1, 1.0f);
      ResolveScalar(kKind)({param.data(), {a.data(), b.data(), nullptr}, grad.data()}, s, kElements);
      if (stochastic) {
        RoundBlocks(param.data(), 1000, kBlocks, dtype, half.data(), {5, 6});
      } else {
        FromFloat(param.data(), kElements, dtype, half.data());
      }
      const UpdateArgs args = {
          device_param.data(), {device_a.data(), device_b.data(), nullptr}, device_grad.data()};
      const HalfStore store = {device_half.data(), dtype, stochastic, {5, 6}, 1000};
      ASSERT_EQ(LaunchUpdate(kKind, args, s, kElements, nullptr, store), cudaSuccess);
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      EXPECT_TRUE(SameBits(device_param.data(), param.data(), kElements));
      EXPECT_EQ(std::memcmp(device_half.data(), half.data(), kElements * 2), 0);
    }
  }
}

TEST_F(Launch, UpdateGivesTheBitsOfThePlainLoop) {
  std::mt19937_64 random(12);
  Hyper hyper;
  hyper.weight_decay = 0.1;
  hyper.momentum = 0.9;
  hyper.nesterov = true;
  for (const OptimizerInfo& info : kOptimizers) {
    const OptimizerKind kind = info.kind;
    SCOPED_TRACE(info.name);
    Floats param = RandomFloats(kElements, random, false), a = RandomFloats(kElements, random, false),
           b = RandomFloats(kElements, random, false), grad = RandomFloats(kElements, random, false);
    for (int64_t i = 0; i < kElements; ++i) b[i] = std::fabs(b[i]);
    Managed<float> device_param(param), device_a(a), device_b(b), device_grad(grad);
    for (uint64_t step = 1; step <= 5; ++step) {
      const Scalars s = Prepare(kind, hyper, step, 0.37f);
      ResolveScalar(kind)({param.data(), {a.data(), b.data(), nullptr}, grad.data()}, s, kElements);
      ASSERT_EQ(
          LaunchUpdate(kind,
                       {device_param.data(), {device_a.data(), device_b.data(), nullptr}, device_grad.data()},
                       s, kElements, nullptr),
          cudaSuccess);
    }
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_TRUE(SameBits(device_param.data(), param.data(), kElements));
    EXPECT_TRUE(SameBits(device_a.data(), a.data(), kElements));
    EXPECT_TRUE(SameBits(device_b.data(), b.data(), kElements));
  }
}

// What is refused before anything reaches the device.
TEST(LaunchArguments, BadOnesAreRefused) {
  EXPECT_EQ(LaunchReduceBlocks(nullptr, -1, false, nullptr, 1, nullptr, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchReduceBlocks(nullptr, kMaxSources + 1, false, nullptr, 1, nullptr, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(LaunchReduceBlocks(nullptr, 0, false, nullptr, -1, nullptr, nullptr), cudaErrorInvalidValue);
  const Source mixed[] = {{&mixed, 1, DType::kFloat32}, {&mixed, 1, DType::kBFloat16}};
  EXPECT_EQ(LaunchReduceBlocks(mixed, 2, false, nullptr, 1, nullptr, nullptr), cudaErrorInvalidValue);
  const SourceGroup group = {mixed, 2};
  EXPECT_EQ(LaunchReduceGroups(&group, 1, DType::kFloat32, false, nullptr, 1, nullptr, nullptr),
            cudaErrorInvalidValue);
  HalfStore fp32;
  uint16_t half = 0;
  fp32.to = &half, fp32.dtype = DType::kFloat32;
  EXPECT_EQ(LaunchUpdate(OptimizerKind::kAdam, {}, {}, 256, nullptr, fp32), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchUpdate(OptimizerKind::kAdam, {}, {}, 100, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchUpdate(static_cast<OptimizerKind>(99), {}, {}, 256, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace cuda
}  // namespace kernels
}  // namespace sherd

#else

TEST(Launch, NeedsCuda) { GTEST_SKIP() << "built without --config=cuda"; }

#endif  // SHERD_CUDA
