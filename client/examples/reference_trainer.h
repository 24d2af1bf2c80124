// The run that Sherd's are measured against: one process, the whole global batch, libtorch's own optimizers
// (or the papers', reference_optimizer.h) and clipping.
#ifndef SHERD_CLIENT_EXAMPLES_REFERENCE_TRAINER_H_
#define SHERD_CLIENT_EXAMPLES_REFERENCE_TRAINER_H_

#include <memory>

#include "client/examples/gpt.h"
#include "client/examples/train_options.h"
#include "client/examples/trainer.h"

namespace sherd::examples {

// Trains `model` in place. Errors of libtorch leave Step as kInternal.
std::unique_ptr<Trainer> MakeReferenceTrainer(std::shared_ptr<Gpt> model, const TrainOptions& options);

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_REFERENCE_TRAINER_H_
