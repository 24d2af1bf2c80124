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
      StreamCopy(to, from.data() + shift, n * 4);
      for (int64_t i = 0; i < 1000; ++i) {
        ASSERT_EQ(to[i], i < n ? static_cast<float>(i + shift) : -1.0f) << n << " " << shift << " " << i;
      }
    }
  }
}

TEST(StreamCopyTest, TakesAnyNumberOfBytes) {
  alignas(64) char to[300];
  char from[300];
  for (int i = 0; i < 300; ++i) from[i] = static_cast<char>(i);
  for (int64_t n : {1, 63, 65, 130, 201}) {
    std::fill_n(to, 300, 'x');
    StreamCopy(to, from + 2, n);
    for (int64_t i = 0; i < 300; ++i) ASSERT_EQ(to[i], i < n ? from[i + 2] : 'x') << n << " " << i;
  }
}

}  // namespace
}  // namespace kernels
}  // namespace sherd
