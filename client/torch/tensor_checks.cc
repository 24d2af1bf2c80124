#include "client/torch/tensor_checks.h"

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"

namespace sherd::torch {

absl::Status CheckParameter(const std::string& name, const at::Tensor& t) {
  if (!t.defined()) return absl::InvalidArgumentError(absl::StrCat("parameter ", name, " is undefined"));
  if (!DTypeOf(t.scalar_type()).has_value() || !t.device().is_cpu() || t.layout() != at::kStrided) {
    return absl::InvalidArgumentError(
        absl::StrCat("parameter ", name, " is ", c10::toString(t.scalar_type()), " on ", t.device().str(),
                     "; parameters must be dense fp32, bf16 or fp16 on the CPU"));
  }
  return absl::OkStatus();
}

std::optional<DType> DTypeOf(at::ScalarType type) {
  if (type == at::kFloat) return DType::kFloat32;
  if (type == at::kBFloat16) return DType::kBFloat16;
  if (type == at::kHalf) return DType::kFloat16;
  return std::nullopt;
}

at::ScalarType TorchType(DType dtype) {
  return dtype == DType::kFloat32 ? at::kFloat : dtype == DType::kBFloat16 ? at::kBFloat16 : at::kHalf;
}

const char* SafetensorsType(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return "F32";
    case at::kDouble:
      return "F64";
    case at::kLong:
      return "I64";
    case at::kInt:
      return "I32";
    case at::kShort:
      return "I16";
    case at::kChar:
      return "I8";
    case at::kByte:
      return "U8";
    case at::kBool:
      return "BOOL";
    case at::kHalf:
      return "F16";
    case at::kBFloat16:
      return "BF16";
    default:
      return nullptr;
  }
}

}  // namespace sherd::torch
