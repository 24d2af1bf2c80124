#include "client/torch/shared_parameters.h"

#include <ATen/ATen.h>
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/torch/meta_init.h"
#include "client/torch/stray_write.h"
#include "client/torch/tensor_checks.h"
#include "core/layout.h"
#include "runtime/doorbell.h"

namespace sherd::torch {

namespace {

// A tensor that a MetaInit noted, and its place in the job's memory.
struct Noted {
  const std::string* name;
  NotedValues values;
  int64_t first;  // element of the tensor that `to` begins with
  absl::Span<float> to;
};

// By all cores, piece by piece.
void FillNoted(const std::vector<Noted>& tensors) {
  constexpr size_t kPiece = size_t{1} << 18;
  struct Piece {
    const Noted* tensor;
    size_t first;
  };
  std::vector<Piece> pieces;
  for (const Noted& t : tensors) {
    for (size_t first = 0; first < t.to.size(); first += kPiece) pieces.push_back({&t, first});
  }
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < pieces.size(); i = next++) {
      const Noted& t = *pieces[i].tensor;
      FillInitial(*t.values.how, t.values.seed, *t.name, t.first + static_cast<int64_t>(pieces[i].first),
                  t.to.subspan(pieces[i].first, kPiece));
    }
  };
  const size_t helpers = std::min<size_t>(runtime::UsableCores(), pieces.size());
  std::vector<std::thread> threads;
  for (size_t i = 1; i < helpers; ++i) threads.emplace_back(work);
  work();
  for (std::thread& t : threads) t.join();
}

}  // namespace

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
  std::vector<Noted> noted;
  for (const SharedParameter& p : parameters) {
    const TensorInfo& info = session.memory().layout().tensors()[p.index];
    if (info.numel == 0) continue;
    if (const std::optional<NotedValues> values = NotedOf(p.tensor); values.has_value()) {
      if (!values->how.has_value()) {
        return absl::FailedPreconditionError(
            absl::StrCat("parameter ", p.name,
                         " was made under MetaInit and never initialised: initialise it "
                         "(torch::nn::init) before the scope ends"));
      }
      for (const BlockRange& blocks : session.InitialBlocks(info.unit, info.blocks)) {
        const int64_t first = (blocks.begin - info.blocks.begin) * kBlockElements;
        const int64_t end = std::min(info.numel, (blocks.end - info.blocks.begin) * kBlockElements);
        noted.push_back({&p.name, *values, first,
                         plane->subspan(blocks.begin * kBlockElements, static_cast<size_t>(end - first))});
      }
      continue;
    }
    if (session.InitialBlocks(info.unit, info.blocks).empty()) continue;
    const at::Tensor values = p.tensor.detach().to(at::kFloat).contiguous();
    std::memcpy(plane->data() + info.blocks.begin * kBlockElements, values.data_ptr<float>(), info.numel * 4);
  }
  FillNoted(noted);
  return absl::OkStatus();
}

void MapParameters(Session& session, const std::shared_ptr<client::ParameterWindow>& window,
                   std::vector<SharedParameter>* parameters) {
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
    void* const shared = info.spec.dtype == DType::kFloat32 ? static_cast<void*>(memory->plane(0) + at)
                                                            : static_cast<void*>(memory->compute() + at);
    void* const home = window == nullptr ? shared : const_cast<void*>(window->Address(p.index));
    // A storage of its own for each tensor, which keeps the mapping alive for as long as anyone looks at it.
    at::Tensor view = at::from_blob(
        home, p.tensor.sizes(), [memory, window](void*) {}, TorchType(info.spec.dtype));
    p.tensor.set_data(view);
    p.home = home;
    guarded.push_back({home, info.numel * SizeOf(info.spec.dtype), p.name,
                       window == nullptr ? nullptr : window->readable(info.unit)});
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
