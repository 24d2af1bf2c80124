#include "kernels/stream_copy.h"

#include <vector>

#include "gtest/gtest.h"

namespace sherd {
namespace kernels {
namespace {

TEST(StreamCopyTest, CopiesWhatIsAskedAndNoMore) {
  for (int64_t n : {0, 1, 15, 16, 17, 255, 256, 1000}) {
    for (int64_t shift : {0, 1, 3}) {
      alignas(64) float to[1100];
      std::vector<float> from(1100);
      for (int i = 0; i < 1100; ++i) to[i] = -1, from[i] = static_cast<float>(i);
      StreamCopy(to, from.data() + shift, n);
      for (int64_t i = 0; i < 1000; ++i) {
        ASSERT_EQ(to[i], i < n ? static_cast<float>(i + shift) : -1.0f) << n << " " << shift << " " << i;
      }
    }
  }
}

}  // namespace
}  // namespace kernels
}  // namespace sherd
