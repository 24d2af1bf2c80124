#include "client/torch/shared_buffers.h"

#include <ATen/ATen.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "client/torch/tensor_checks.h"
#include "runtime/records.h"

namespace sherd::torch {

absl::Status SharedBuffers::Declare(const ::torch::OrderedDict<std::string, at::Tensor>& buffers,
                                    JobSpec* spec) {
  for (const auto& item : buffers) {
    const char* type = SafetensorsType(item.value().scalar_type());
    if (type == nullptr || !item.value().device().is_cpu()) {
      return absl::InvalidArgumentError(
          absl::StrCat("buffer ", item.key(), " is ", c10::toString(item.value().scalar_type()), " on ",
                       item.value().device().str(), ", which can not be carried"));
    }
    spec->buffers.push_back({item.key(), item.value().sizes().vec(), type});
    tensors_.push_back(item.value());
  }
  return absl::OkStatus();
}

void SharedBuffers::Publish(runtime::JobMemory& memory, Step step) const {
  if (tensors_.empty()) return;
  char* const to = memory.rank(Rank(0)).buffers(step).data();
  for (size_t b = 0; b < tensors_.size(); ++b) {
    const at::Tensor whole = tensors_[b].detach().contiguous();
    std::memcpy(to + runtime::BufferOffset(memory.spec(), static_cast<int>(b)), whole.data_ptr(),
                whole.nbytes());
  }
}

void SharedBuffers::Take(runtime::JobMemory& memory, Step step) {
  if (tensors_.empty()) return;
  char* const from = memory.rank(Rank(0)).buffers(step).data();
  for (size_t b = 0; b < tensors_.size(); ++b) {
    at::Tensor& t = tensors_[b];
    const int64_t offset = runtime::BufferOffset(memory.spec(), static_cast<int>(b));
    t.copy_(at::from_blob(from + offset, t.sizes(), t.scalar_type()));
  }
}

}  // namespace sherd::torch
