#include "runtime/formats/half.h"

#include <cstddef>

#include "absl/base/internal/raw_logging.h"
#include "kernels/convert.h"

namespace sherd::formats {
namespace {

void CheckSizes(size_t in, size_t out) {
  ABSL_RAW_CHECK(in == out, "conversion between spans of different sizes");
}

}  // namespace

void Bf16FromFloat(absl::Span<const float> in, absl::Span<uint16_t> out) {
  CheckSizes(in.size(), out.size());
  kernels::FromFloat(in.data(), static_cast<int64_t>(in.size()), kernels::DType::kBFloat16, out.data());
}
void FloatFromBf16(absl::Span<const uint16_t> in, absl::Span<float> out) {
  CheckSizes(in.size(), out.size());
  kernels::ToFloat(kernels::DType::kBFloat16, in.data(), static_cast<int64_t>(in.size()), out.data());
}
void Fp16FromFloat(absl::Span<const float> in, absl::Span<uint16_t> out) {
  CheckSizes(in.size(), out.size());
  kernels::FromFloat(in.data(), static_cast<int64_t>(in.size()), kernels::DType::kFloat16, out.data());
}
void FloatFromFp16(absl::Span<const uint16_t> in, absl::Span<float> out) {
  CheckSizes(in.size(), out.size());
  kernels::ToFloat(kernels::DType::kFloat16, in.data(), static_cast<int64_t>(in.size()), out.data());
}

}  // namespace sherd::formats
