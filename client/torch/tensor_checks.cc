#include "client/torch/tensor_checks.h"

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"

namespace sherd::torch {

absl::Status CheckParameter(const std::string& name, const at::Tensor& t) {
  if (!t.defined()) return absl::InvalidArgumentError(absl::StrCat("parameter ", name, " is undefined"));
  if (t.scalar_type() != at::kFloat || !t.device().is_cpu() || t.layout() != at::kStrided) {
    return absl::InvalidArgumentError(absl::StrCat("parameter ", name, " is ", c10::toString(t.scalar_type()),
                                                   " on ", t.device().str(),
                                                   "; parameters must be dense fp32 on the CPU"));
  }
  return absl::OkStatus();
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
