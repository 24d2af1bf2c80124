// Which tensors can be parameters and buffers of a job, and what Sherd calls their types.
#ifndef SHERD_CLIENT_TORCH_TENSOR_CHECKS_H_
#define SHERD_CLIENT_TORCH_TENSOR_CHECKS_H_

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "core/types.h"

namespace sherd::torch {

// INVALID_ARGUMENT, naming the parameter and what it is, unless it is dense fp32, bf16 or fp16 on the CPU.
absl::Status CheckParameter(const std::string& name, const at::Tensor& t);

// nullopt for other types.
std::optional<DType> DTypeOf(at::ScalarType type);
at::ScalarType TorchType(DType dtype);

// As safetensors names it, or null if a buffer can not have this type.
const char* SafetensorsType(at::ScalarType type);

}  // namespace sherd::torch

#endif  // SHERD_CLIENT_TORCH_TENSOR_CHECKS_H_
