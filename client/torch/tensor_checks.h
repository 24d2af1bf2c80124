// Which tensors can be parameters and buffers of a job.
#ifndef SHERD_CLIENT_TORCH_TENSOR_CHECKS_H_
#define SHERD_CLIENT_TORCH_TENSOR_CHECKS_H_

#include <ATen/core/Tensor.h>

#include <string>

#include "absl/status/status.h"

namespace sherd::torch {

// INVALID_ARGUMENT, naming the parameter and what it is, unless it is dense fp32 on the CPU.
absl::Status CheckParameter(const std::string& name, const at::Tensor& t);

// As safetensors names it, or null if a buffer can not have this type.
const char* SafetensorsType(at::ScalarType type);

}  // namespace sherd::torch

#endif  // SHERD_CLIENT_TORCH_TENSOR_CHECKS_H_
