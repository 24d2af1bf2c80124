// How gradients leave a trainer: autograd's hooks put each into staging as it comes about, and a unit is
// delivered when all that are expected of it are in.
//
//   GradientOutbox outbox(layout, parameters);
//   outbox.Open(writer, memory);                          // hooks the parameters
//   outbox.BeginPart(scale);  loss.backward();  outbox.FinishPart();  outbox.EndMicroBatch(true);
//   outbox.DeliverLate(scale);                            // once, before the STEP record
//
// Expected of a parameter are as many arrivals as in the last micro-batch (at first one): a tied weight may
// arrive twice across re-entrant checkpointing, an unused one never. What arrives after its unit was
// delivered waits in `.grad`, for the next part or for DeliverLate.
//
// Gradients leave in JobSpec::staging. Those of 16-bit parameters that have to wait for a later micro-batch
// are summed in fp32, here, and rounded once when they leave.
//
// Thread-compatible; the hooks run on the thread that runs backward. Calls may block on owners and other
// ranks, as StepWriter says. Errors of a hook are kept and returned by the next call.
#ifndef SHERD_CLIENT_TORCH_GRADIENT_OUTBOX_H_
#define SHERD_CLIENT_TORCH_GRADIENT_OUTBOX_H_

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "client/step_writer.h"
#include "client/torch/staging_allocator.h"
#include "core/layout.h"
#include "core/types.h"

namespace sherd::torch {

class GradientOutbox {
 public:
  // `tensors[i]` is the parameter called `names[i]` in the layout.
  GradientOutbox(const Layout& layout, const std::vector<std::string>& names,
                 const std::vector<at::Tensor>& tensors);
  ~GradientOutbox();
  GradientOutbox(const GradientOutbox&) = delete;
  GradientOutbox& operator=(const GradientOutbox&) = delete;

  // `writer` must outlive this. Large gradients are from now on computed in `memory`'s staging.
  void Open(client::StepWriter* writer, std::shared_ptr<runtime::JobMemory> memory);

  // Gradients that arrive from now on leave; they count with `scale`. Before it, they stay in `.grad`.
  void BeginPart(float scale);
  bool in_part() const { return in_part_; }
  // After backward: delivers what is left of the part.
  absl::Status FinishPart();
  // Backward is over, in a part or not. `computed`: there were samples, so its arrivals are what to expect
  // next time.
  void EndMicroBatch(bool computed);
  // What came after its unit was delivered. After the step's last part.
  absl::Status DeliverLate(float scale);
  // The step in hand was given up: forgets its gradients, and an error that said so.
  void GiveUp();
  // Gradients that wait in `.grad` count by `factor` more from now on.
  void Rescale(double factor);

  // Bit per tensor of the layout: got a gradient since ClearHasGrad.
  const std::vector<uint64_t>& has_grad() const { return has_grad_; }
  void ClearHasGrad();
  const absl::Status& error() const { return error_; }
  int64_t staged_bytes() const { return staged_bytes_; }

  // What is expected of each parameter, as bytes. A replacement must cut its gradients into parts as its
  // predecessor did, or one would count twice or never.
  std::string PackExpected() const;
  // Takes it from the front of `packed`. DATA_LOSS. Empty: one arrival each.
  absl::Status UnpackExpected(absl::string_view* packed);

 private:
  struct Param {
    at::Tensor tensor;
    int index = 0;  // in the layout
    int unit = 0;
    int64_t offset = 0;  // elements, in its unit
    std::shared_ptr<::torch::autograd::Node> accumulator;
    int arrivals = 0;      // in this micro-batch
    int expected = 1;      // arrivals in the last one
    bool staged = false;   // in the open part
    bool pending = false;  // `.grad` or `sum` holds a gradient that has not left
    // 16-bit parameters: of micro-batches that ended without leaving, when `summed`.
    at::Tensor sum;
    bool summed = false;
  };
  struct Unit {
    std::vector<int> params;
    int missing = 0;         // params that are expected and have not arrived
    bool delivered = false;  // in the open part
  };
  struct Arrival;

  void OfferStaging(std::shared_ptr<runtime::JobMemory> memory);
  // A gradient was accumulated into a parameter's `.grad`: `*from`, which autograd lets go of after this.
  void Arrived(int param, const at::Tensor* from);
  void Stage(int param, const at::Tensor* from = nullptr);
  void CopyToStaging(Param& p, void* to, at::Tensor grad);
  // Moves a 16-bit `.grad` into the fp32 sum.
  void Sum(Param& p);
  // True if, once autograd has let go of `*from`, nobody but us can reach the gradient's memory.
  static bool OnlyOurs(const at::Tensor& grad, const at::Tensor* from);
  void DeliverUnit(int unit);
  void Note(const absl::Status& s) {
    if (error_.ok()) error_ = s;
  }

  client::StepWriter* writer_ = nullptr;
  DType staged_as_ = DType::kFloat32;  // JobSpec::staging
  std::shared_ptr<StagingSource> staging_;
  std::vector<Param> params_;
  std::vector<Unit> units_;
  std::vector<uint64_t> has_grad_;
  bool in_part_ = false;
  int64_t staged_bytes_ = 0;
  absl::Status error_;
};

}  // namespace sherd::torch

#endif  // SHERD_CLIENT_TORCH_GRADIENT_OUTBOX_H_
