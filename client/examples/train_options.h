// The command line of train_gpt.
#ifndef SHERD_CLIENT_EXAMPLES_TRAIN_OPTIONS_H_
#define SHERD_CLIENT_EXAMPLES_TRAIN_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "client/examples/optimizer_choice.h"
#include "client/options.h"
#include "core/loss_scale.h"
#include "core/types.h"

namespace sherd::examples {

struct TrainOptions : OptimizerChoice {
  std::string size = "tiny";  // one of kGptSizes
  std::string text;           // file; empty is the default text
  uint64_t steps = 400;       // updates in all, those before a restart included
  int64_t global_batch = 8;   // samples of a step, over all ranks and micro-batches
  int64_t context = 128;      // bytes of a sample
  int64_t experts = 0;        // feed-forward networks a block; 0: one for all tokens
  int64_t freeze = 0;        // blocks that are not trained, from the first on, and the embeddings; 0: all are
  int64_t accumulation = 1;  // micro-batches of a step
  int shard_ranks = 0;       // ZeroOptions::shard_ranks
  int virtual_ranks = 0;     // ZeroOptions::virtual_ranks; no meaning with `reference`
  double weight_decay = 0.1;    // of the blocks' matrices (IsDecayed)
  double clip = 1.0;            // limit of the gradient's norm; 0 does not clip
  uint64_t seed = 1;            // of initial values, samples and generated text
  bool init_sharded = false;    // initial values come about in the job's memory alone
  int stage = 2;                // ZeRO stage; no meaning with `reference`
  int64_t bucket_elements = 0;  // that are reduced together; 0: ZeroOptions' own
  Stage3Options stage3;         // in stage 3
  // Mixed precision: of parameters, and of gradients on their way (unset: the same); masters are fp32.
  DType compute = DType::kFloat32;
  std::optional<DType> communication;
  std::optional<LossScaleSpec> loss_scale;  // unset: dynamic for fp16, else none
  bool stochastic_rounding = false;
  bool reference = false;
  uint64_t eval_every = 0;                     // steps between held-out losses; 0: only at the end
  int64_t generate = 0;                        // bytes to print at the end
  std::string json;                            // step log; empty: none
  std::string save;                            // safetensors file; empty: none
  std::string save_checkpoint;                 // directory; empty: none
  uint64_t save_every = 0;                     // steps between checkpoints; 0: only after the last
  int keep = 0;                                // checkpoints kept in save_checkpoint; 0: all
  std::string restore;                         // directory of checkpoints to begin from; empty: none
  std::string restore_tag;                     // empty: the newest
  bool weights_only = false, partial = false;  // of the restore
  std::string write_name;                      // of a parameter that is written by hand; empty: none
  float write_value = 0;                       // of each of its elements
  uint64_t write_step = 0;                     // with whose update
  bool save_optimizer = false;                 // with `reference`: the optimizer's planes too
  bool by_pass = false;                        // samples: each window of the text once a pass
  std::string log_samples;                     // file; empty: none
  std::set<std::string> given;                 // flags that stood on the command line, by their first name
};

// Nothing when --help was asked for (and printed to stdout). kInvalidArgument: one line for a person, to be
// followed by exit status 2.
absl::StatusOr<std::optional<TrainOptions>> ParseTrainOptions(int argc, const char* const* argv);

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_TRAIN_OPTIONS_H_
