#include "client/torch/staging_allocator.h"

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace sherd::torch {
namespace {

constexpr int64_t kElements = 100 << 10;

// One place, as staging would have it.
class StagingAllocatorTest : public ::testing::Test {
 protected:
  StagingAllocatorTest() {
    std::shared_ptr<void> memory(std::aligned_alloc(64, kElements * 4), [this](void* p) {
      memory_gone_ = true;
      std::free(p);
    });
    place_ = static_cast<float*>(memory.get());
    source_ = StagingSource::Create(
        std::move(memory), {{kElements * 4, kElements * 4}},
        [this](int64_t) {
          ++asked_;
          return std::exchange(free_, false) ? place_ : nullptr;
        },
        [this](const void* p) {
          EXPECT_EQ(p, place_);
          free_ = true;
        });
    StagingSource::Enter(source_.get());
  }
  ~StagingAllocatorTest() override {
    StagingSource::Enter(nullptr);
    if (source_ != nullptr) source_->Close();
  }

  bool free_ = true, memory_gone_ = false;
  int asked_ = 0;
  float* place_ = nullptr;
  std::shared_ptr<StagingSource> source_;
};

TEST_F(StagingAllocatorTest, GivesThePlaceToOneTensorOfTheRightSizeMadeWithoutGradMode) {
  at::Tensor with_grad_mode = at::empty({kElements});
  EXPECT_NE(with_grad_mode.data_ptr(), place_);
  at::NoGradGuard no_grad;
  at::Tensor other_size = at::empty({kElements + 1});
  EXPECT_EQ(asked_, 0);
  at::Tensor a = at::empty({kElements});
  EXPECT_EQ(a.data_ptr(), place_);
  EXPECT_TRUE(source_->Owns(place_));
  at::Tensor b = at::ones({kElements});
  EXPECT_NE(b.data_ptr(), place_);
  at::Tensor view = a.view({-1, 2});
  a.reset();
  EXPECT_FALSE(free_) << "a view looks at it";
  view.reset();
  EXPECT_TRUE(free_);
  EXPECT_FALSE(source_->Owns(place_));
  EXPECT_EQ(b.sum().item<float>(), kElements);
}

TEST_F(StagingAllocatorTest, OtherThreadsAreNotServedButMayFree) {
  at::NoGradGuard no_grad;
  at::Tensor a = at::empty({kElements});
  ASSERT_EQ(a.data_ptr(), place_);
  std::thread([&] {
    a.reset();
    at::NoGradGuard here;
    EXPECT_NE(at::empty({kElements}).data_ptr(), place_);
  }).join();
  EXPECT_TRUE(free_);
}

TEST_F(StagingAllocatorTest, TensorsThatOutliveTheSourceKeepItsMemory) {
  at::NoGradGuard no_grad;
  at::Tensor a = at::ones({kElements});
  ASSERT_EQ(a.data_ptr(), place_);
  source_->Close();
  source_.reset();
  EXPECT_FALSE(memory_gone_);
  EXPECT_EQ(a.sum().item<float>(), kElements);
  EXPECT_NE(at::empty({kElements}).data_ptr(), place_) << "closed";
  a.reset();
  EXPECT_TRUE(memory_gone_);
  EXPECT_FALSE(free_) << "nothing is given back after Close";
}

TEST_F(StagingAllocatorTest, RawMemoryIsFreedByWhoeverMadeIt) {
  at::Allocator* const allocator = c10::GetCPUAllocator();
  ASSERT_NE(allocator->raw_deleter(), nullptr);
  void* p = allocator->raw_allocate(1000);
  std::memset(p, 1, 1000);
  allocator->raw_deallocate(p);
  at::NoGradGuard no_grad;
  p = allocator->raw_allocate(kElements * 4);
  EXPECT_EQ(p, place_);
  allocator->raw_deallocate(p);
  EXPECT_TRUE(free_);
}

}  // namespace
}  // namespace sherd::torch
