#include "server/tensor_stats.h"

#include <algorithm>
#include <cmath>

namespace sherd::server {
namespace {

constexpr uint64_t kPieceBytes = 256 << 10;

// Calls fn(value) for all of them.
template <typename Fn>
absl::Status ForEachValue(TensorStream& stream, std::vector<float>& scratch, Fn fn) {
  scratch.resize(kPieceBytes / 4);
  for (uint64_t at = 0; at < stream.bytes(); at += kPieceBytes) {
    const uint64_t n = std::min(kPieceBytes, stream.bytes() - at);
    absl::Status s = stream.Fill(at, absl::MakeSpan(reinterpret_cast<char*>(scratch.data()), n));
    if (!s.ok()) return s;
    for (uint64_t i = 0; i < n / 4; ++i) fn(scratch[i]);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TensorFigures> ComputeFigures(TensorStream& stream, int bins) {
  TensorFigures f;
  std::vector<float> scratch;
  double sum = 0, squares = 0;
  int64_t finite = 0;
  absl::Status s = ForEachValue(stream, scratch, [&](float v) {
    if (std::isnan(v)) {
      ++f.nans;
    } else if (std::isinf(v)) {
      ++f.infs;
    } else {
      f.min = finite == 0 ? v : std::min<double>(f.min, v);
      f.max = finite == 0 ? v : std::max<double>(f.max, v);
      ++finite;
      sum += v;
      squares += static_cast<double>(v) * v;
    }
  });
  if (!s.ok()) return s;
  f.norm = std::sqrt(squares);
  f.mean = finite == 0 ? 0 : sum / finite;
  if (bins <= 0) return f;
  f.histogram.assign(bins, 0);
  const double width = (f.max - f.min) / bins;
  s = ForEachValue(stream, scratch, [&](float v) {
    if (!std::isfinite(v)) return;
    const double bin = width > 0 ? (v - f.min) / width : 0;
    ++f.histogram[std::min<int64_t>(bins - 1, static_cast<int64_t>(bin))];
  });
  if (!s.ok()) return s;
  return f;
}

}  // namespace sherd::server
