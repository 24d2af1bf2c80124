// Aligned arrays, awkward floats and comparison by bits, for the tests of kernels.
#ifndef SHERD_KERNELS_TEST_DATA_H_
#define SHERD_KERNELS_TEST_DATA_H_

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>

#include "kernels/block.h"

namespace sherd {
namespace kernels {

// Zeros, aligned to kBlockAlignment; copies are deep.
template <typename T>
class AlignedArray {
 public:
  explicit AlignedArray(int64_t size) : size_(size), data_(Allocate(size)) {}
  AlignedArray(const AlignedArray& other) : AlignedArray(other.size_) {
    std::memcpy(data_.get(), other.data(), size_ * sizeof(T));
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_.get()[i]; }
  const T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  static T* Allocate(int64_t size) {
    const size_t bytes = (size * sizeof(T) / kBlockAlignment + 1) * kBlockAlignment;
    void* p = std::aligned_alloc(kBlockAlignment, bytes);
    std::memset(p, 0, bytes);
    return static_cast<T*>(p);
  }
  int64_t size_;
  std::unique_ptr<T, Free> data_;
};

using Floats = AlignedArray<float>;
using Doubles = AlignedArray<double>;

// Mostly values of many magnitudes; with `special`, one in eight is a zero of either sign, a denormal, huge,
// an inf or a NaN.
inline Floats RandomFloats(int64_t size, std::mt19937_64& random, bool special) {
  using Limits = std::numeric_limits<float>;
  const float kSpecial[] = {0.0f,
                            -0.0f,
                            Limits::denorm_min(),
                            -Limits::denorm_min(),
                            1e-40f,
                            Limits::min(),
                            Limits::max(),
                            -Limits::max(),
                            Limits::infinity(),
                            -Limits::infinity(),
                            Limits::quiet_NaN(),
                            1e20f,
                            1.0f,
                            -1e-20f,
                            3e38f,
                            1e-30f};
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> exponent(-20, 20);
  Floats out(size);
  for (int64_t i = 0; i < size; ++i) {
    out[i] = std::ldexp(normal(random), exponent(random));
    if (special && random() % 8 == 0) out[i] = kSpecial[random() % std::size(kSpecial)];
  }
  return out;
}

// Bit for bit, except that any NaN equals any other.
template <typename T>
::testing::AssertionResult SameBits(const T* a, const T* b, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0) {
      char text[120];
      std::snprintf(text, sizeof(text), "element %lld: %a is not %a", static_cast<long long>(i),
                    static_cast<double>(a[i]), static_cast<double>(b[i]));
      return ::testing::AssertionFailure() << text;
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_TEST_DATA_H_
