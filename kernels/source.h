// What is added up: gradients as ranks deliver them.
#ifndef SHERD_KERNELS_SOURCE_H_
#define SHERD_KERNELS_SOURCE_H_

#include <cstdint>

#include "kernels/block.h"
#include "kernels/half.h"

namespace sherd {
namespace kernels {

// What one rank contributes: `blocks` contiguous blocks of `dtype`, times `scale`. Null data contributes
// nothing (its scale is not read). Borrowed for the call.
struct Source {
  const void* data;
  float scale;
  DType dtype = DType::kFloat32;
};

// One element of a source as fp32, without its scale, as the plain loops take it. REQUIRES: data is not null.
inline float ElementOf(const Source& source, int64_t i) {
  if (source.dtype == DType::kFloat32) return static_cast<const float*>(source.data)[i];
  const uint16_t half = static_cast<const uint16_t*>(source.data)[i];
  return source.dtype == DType::kBFloat16 ? FloatFromBf16(half) : FloatFromFp16(half);
}

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_SOURCE_H_
