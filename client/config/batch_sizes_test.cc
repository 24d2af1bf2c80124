#include "client/config/batch_sizes.h"

#include <string>

#include "gtest/gtest.h"

namespace sherd::config {
namespace {

constexpr absl::nullopt_t kNot = absl::nullopt;

TEST(BatchSizes, AnyTwoGiveTheThird) {
  for (const AskedBatchSizes& asked : {AskedBatchSizes{64, 2, 4}, AskedBatchSizes{64, 2, kNot},
                                       AskedBatchSizes{64, kNot, 4}, AskedBatchSizes{kNot, 2, 4}}) {
    const auto sizes = FillBatchSizes(asked, 8);
    ASSERT_TRUE(sizes.ok()) << sizes.status();
    EXPECT_EQ(sizes->train, 64);
    EXPECT_EQ(sizes->micro, 2);
    EXPECT_EQ(sizes->accumulation, 4);
  }
}

TEST(BatchSizes, OneAloneMeansAccumulationOne) {
  EXPECT_EQ(FillBatchSizes({64, kNot, kNot}, 8)->micro, 8);
  EXPECT_EQ(FillBatchSizes({64, kNot, kNot}, 8)->accumulation, 1);
  EXPECT_EQ(FillBatchSizes({kNot, 3, kNot}, 8)->train, 24);
  EXPECT_EQ(FillBatchSizes({kNot, 3, kNot}, 8)->accumulation, 1);
}

TEST(BatchSizes, ErrorsHaveAllFourNumbers) {
  const auto message = [](const AskedBatchSizes& asked, int world) {
    const auto sizes = FillBatchSizes(asked, world);
    EXPECT_EQ(sizes.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(sizes.status().message());
  };
  EXPECT_EQ(
      message({30, 4, 2}, 4),
      "train_batch_size 30, train_micro_batch_size_per_gpu 4, gradient_accumulation_steps 2, 4 trainers: "
      "4 x 2 x 4 is 32, not 30");
  EXPECT_EQ(
      message({30, 4, kNot}, 4),
      "train_batch_size 30, train_micro_batch_size_per_gpu 4, gradient_accumulation_steps (not given), 4 "
      "trainers: the first is no multiple of 4 x 4");
  EXPECT_NE(message({7, kNot, kNot}, 2).find("no multiple of 1 x 2"), std::string::npos);
  EXPECT_NE(message({kNot, kNot, 4}, 1).find("1 trainer: state train_batch_size"), std::string::npos);
  EXPECT_NE(message({kNot, int64_t{1} << 53, 32768}, 4096).find("too large"), std::string::npos);
}

// Against the definition, for all small numbers.
TEST(BatchSizes, Exhaustive) {
  for (int64_t train = 1; train <= 24; ++train) {
    for (int64_t micro = 1; micro <= 5; ++micro) {
      for (int64_t steps = 1; steps <= 4; ++steps) {
        for (int world = 1; world <= 4; ++world) {
          EXPECT_EQ(FillBatchSizes({train, micro, steps}, world).ok(), train == micro * steps * world);
          EXPECT_EQ(FillBatchSizes({train, micro, kNot}, world).ok(), train % (micro * world) == 0);
          EXPECT_EQ(FillBatchSizes({train, kNot, steps}, world).ok(), train % (steps * world) == 0);
        }
      }
    }
  }
}

}  // namespace
}  // namespace sherd::config
