// The GPU gives the bits of the plain loop. Skipped without --config=cuda or without a device.
#include <gtest/gtest.h>

#ifdef SHERD_CUDA
#include <cstring>
#include <memory>
#include <vector>

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

TEST_F(Launch, UpdateGivesTheBitsOfThePlainLoop) {
  std::mt19937_64 random(12);
  Hyper hyper;
  hyper.weight_decay = 0.1;
  hyper.momentum = 0.9;
  hyper.nesterov = true;
  for (OptimizerKind kind : {OptimizerKind::kSgd, OptimizerKind::kAdam, OptimizerKind::kAdamW}) {
    SCOPED_TRACE(Info(kind).name);
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
