// What the training loop asks of whoever turns gradients into updates: Sherd's servers, or libtorch in this
// process. The model's samples, loss and log are the loop's business and the same for both, so that their
// runs can be compared.
//
//   while (true) {
//     absl::StatusOr<std::optional<Batch>> batch = trainer.Begin();
//     if (!batch.ok() || !batch->has_value()) break;
//     at::Tensor loss = batch->samples.empty() ? at::Tensor() : model.Loss(WindowsOf(**batch));
//     absl::StatusOr<StepInfo> info = trainer.Step(loss);
//   }
#ifndef SHERD_CLIENT_EXAMPLES_TRAINER_H_
#define SHERD_CLIENT_EXAMPLES_TRAINER_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/batch.h"

namespace at {
class Tensor;
}

namespace sherd::examples {

// Thread-compatible: one thread calls Begin and Step in turn.
class Trainer {
 public:
  virtual ~Trainer() = default;

  // This process's place. Rank 0 prints, logs and evaluates. Valid from construction; Step's info has later
  // ones.
  virtual int rank() const = 0;

  // Blocks until the model's parameters hold the state after step - 1 of the batch returned; nothing once
  // TrainOptions::steps updates are made.
  virtual absl::StatusOr<std::optional<Batch>> Begin() = 0;

  // `loss`: the mean over the samples of the batch Begin returned, with its graph; undefined if that had no
  // samples. Runs the backward pass. With a step's last micro-batch it blocks until the update is made and
  // parameters are whole.
  virtual absl::StatusOr<StepInfo> Step(const at::Tensor& loss) = 0;

  // Writes the current weights as safetensors to `path`: temporary file, then rename. Called between steps,
  // by rank 0.
  virtual absl::Status Save(const std::string& path) = 0;
};

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_TRAINER_H_
