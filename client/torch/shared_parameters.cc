#include "client/torch/shared_parameters.h"

#include <ATen/ATen.h>
#include <malloc.h>

#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/torch/stray_write.h"
#include "client/torch/tensor_checks.h"
#include "core/layout.h"

namespace sherd::torch {

absl::StatusOr<DType> ComputeType(const std::vector<SharedParameter>& parameters, const DType* asked) {
  DType compute = asked != nullptr ? *asked : DType::kFloat32;
  const SharedParameter* first = nullptr;
  for (const SharedParameter& p : parameters) {
    const DType own = *DTypeOf(p.tensor.scalar_type());
    if (own == DType::kFloat32 || own == compute) continue;
    if (asked != nullptr || first != nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          "parameter ", p.name, " is ", Name(own), " but ",
          asked != nullptr ? "the computation is asked for" : absl::StrCat("parameter ", first->name, " is"),
          " in ", Name(compute), ": convert one (module->to(...))"));
    }
    first = &p;
    compute = own;
  }
  return compute;
}

absl::Status WriteInitialValues(Session& session, const std::vector<SharedParameter>& parameters) {
  at::NoGradGuard no_grad;
  absl::StatusOr<absl::Span<float>> plane = session.InitialValues();
  if (!plane.ok()) return plane.status();
  for (const SharedParameter& p : parameters) {
    const TensorInfo& info = session.memory().layout().tensors()[p.index];
    if (info.numel == 0) continue;
    const at::Tensor values = p.tensor.detach().to(at::kFloat).contiguous();
    std::memcpy(plane->data() + info.blocks.begin * kBlockElements, values.data_ptr<float>(), info.numel * 4);
  }
  return absl::OkStatus();
}

void MapParameters(Session& session, std::vector<SharedParameter>* parameters) {
  at::NoGradGuard no_grad;
  std::shared_ptr<runtime::JobMemory> memory = session.shared_memory();
  std::vector<GuardedRange> guarded;
  for (SharedParameter& p : *parameters) {
    const TensorInfo& info = memory->layout().tensors()[p.index];
    if (info.numel == 0) {
      p.tensor.set_data(p.tensor.detach().to(TorchType(info.spec.dtype)));
      continue;
    }
    const int64_t at = info.blocks.begin * kBlockElements;
    void* const home = info.spec.dtype == DType::kFloat32 ? static_cast<void*>(memory->plane(0) + at)
                                                          : static_cast<void*>(memory->compute() + at);
    // A storage of its own for each tensor, which keeps the mapping alive for as long as anyone looks at it.
    at::Tensor view = at::from_blob(
        home, p.tensor.sizes(), [memory](void*) {}, TorchType(info.spec.dtype));
    p.tensor.set_data(view);
    p.home = home;
    guarded.push_back({home, info.numel * SizeOf(info.spec.dtype), p.name});
  }
  // The memory that the values had until now is free but would stay with the process: that of a whole model.
  malloc_trim(0);
  GuardAgainstStrayWrites(std::move(guarded));
}

absl::Status CheckHomes(const std::vector<SharedParameter>& parameters) {
  for (const SharedParameter& p : parameters) {
    if (p.home != nullptr && p.tensor.data_ptr() != p.home) {
      return absl::FailedPreconditionError(
          absl::StrCat("parameter ", p.name,
                       " has left shared memory: something replaced its storage (.to(), "
                       "share_memory() or a load that assigns); change its values through Write"));
    }
  }
  return absl::OkStatus();
}

}  // namespace sherd::torch
