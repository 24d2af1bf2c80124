// Trains a GPT with either trainer: picks samples, computes losses, shows and logs steps, evaluates, saves.
#ifndef SHERD_CLIENT_EXAMPLES_TRAIN_LOOP_H_
#define SHERD_CLIENT_EXAMPLES_TRAIN_LOOP_H_

#include <cstdio>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/examples/gpt.h"
#include "client/examples/text.h"
#include "client/examples/train_options.h"
#include "client/examples/trainer.h"

namespace sherd::examples {

// Where rank 0's words go; other ranks write nothing.
struct Console {
  FILE* results = stdout;  // held-out losses, generated text
  FILE* progress = stderr;
  bool terminal = false;  // whether `progress` is one
};

// Held-out windows that every evaluation uses.
inline constexpr int64_t kHeldOutWindows = 32;

// The windows of `length` bytes at `offsets` of `bytes` as int64 [offsets, length].
// REQUIRES: every window lies inside `bytes`.
at::Tensor MakeWindows(absl::string_view bytes, const std::vector<int64_t>& offsets, int64_t length);

// Mean loss over `text`'s held-out windows, in nats a byte.
double HeldOutLoss(Gpt& model, const Text& text);

// Runs until the trainer has no more batches, then prints, generates and saves as `options` ask.
// REQUIRES: text.CheckContext(options.context) is OK, and the model has that context.
// Errors: the trainer's, the step log's, those of --save; exceptions of libtorch as kInternal.
absl::Status TrainLoop(const TrainOptions& options, const Text& text, Gpt& model, Trainer& trainer,
                       const Console& console);

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_TRAIN_LOOP_H_
