#include "runtime/formats/half.h"

#include <cstddef>

#include "absl/base/internal/raw_logging.h"

namespace sherd::formats {
namespace {

template <typename In, typename Out, typename Convert>
void ForEach(absl::Span<const In> in, absl::Span<Out> out, Convert convert) {
  ABSL_RAW_CHECK(in.size() == out.size(), "conversion between spans of different sizes");
  const In* __restrict from = in.data();
  Out* __restrict to = out.data();
  const size_t size = in.size();
  for (size_t i = 0; i < size; ++i) to[i] = convert(from[i]);
}

}  // namespace

void Bf16FromFloat(absl::Span<const float> in, absl::Span<uint16_t> out) {
  ForEach(in, out, [](float value) { return Bf16FromFloat(value); });
}
void FloatFromBf16(absl::Span<const uint16_t> in, absl::Span<float> out) {
  ForEach(in, out, [](uint16_t half) { return FloatFromBf16(half); });
}
void Fp16FromFloat(absl::Span<const float> in, absl::Span<uint16_t> out) {
  ForEach(in, out, [](float value) { return Fp16FromFloat(value); });
}
void FloatFromFp16(absl::Span<const uint16_t> in, absl::Span<float> out) {
  ForEach(in, out, [](uint16_t half) { return FloatFromFp16(half); });
}

}  // namespace sherd::formats
