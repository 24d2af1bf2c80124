// What the kernels call the types of core: they depend on nothing, so they have names of their own.
#ifndef SHERD_RUNTIME_KERNEL_TYPES_H_
#define SHERD_RUNTIME_KERNEL_TYPES_H_

#include "core/types.h"
#include "kernels/block.h"

namespace sherd::runtime {

static_assert(kernels::kBlockElements == kBlockElements);
static_assert(static_cast<int>(kernels::DType::kFloat32) == static_cast<int>(DType::kFloat32));
static_assert(static_cast<int>(kernels::DType::kBFloat16) == static_cast<int>(DType::kBFloat16));
static_assert(static_cast<int>(kernels::DType::kFloat16) == static_cast<int>(DType::kFloat16));

inline kernels::DType KernelType(DType dtype) { return static_cast<kernels::DType>(dtype); }

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_KERNEL_TYPES_H_
