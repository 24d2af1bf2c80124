// A GPT whose weights lie in a job's shard servers, and nowhere whole: for computing alone.
//
//   auto gpt = ShardedGpt::Load(endpoint, "gpt2/", {});       // on every rank, under `sherd run`
//   Generate((*gpt)->model(), "In the beginning", {});
//
// The servers read the files, each a part of them, straight into their memory; parameters are gathered while
// their block computes (ZeRO stage 3). All are frozen, so there is neither optimizer state nor a gradient.
#ifndef SHERD_CLIENT_EXAMPLES_SHARDED_GPT_H_
#define SHERD_CLIENT_EXAMPLES_SHARDED_GPT_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "client/examples/gpt.h"
#include "client/session.h"
#include "client/torch/zero_optimizer.h"
#include "core/types.h"

namespace sherd::examples {

// Thread-compatible.
class ShardedGpt {
 public:
  // `path`: a file or a folder of them, which every server's host sees. `compute`: fp32, bf16 or fp16. Blocks
  // until the weights are there. Throws what libtorch throws.
  //   FAILED_PRECONDITION  `endpoint` is empty: not under `sherd run`
  //   else                 what is wrong with the files, or with the job
  static absl::StatusOr<std::unique_ptr<ShardedGpt>> Load(const std::string& endpoint,
                                                          const std::string& path, DType compute);

  Gpt& model() { return *model_; }
  int rank() const { return session_->rank(); }
  int world_size() const { return session_->world_size(); }
  // This rank needs nothing any more.
  absl::Status Finish() { return zero_->Detach(); }

 private:
  ShardedGpt(std::unique_ptr<Session> session, std::shared_ptr<Gpt> model,
             std::unique_ptr<sherd::torch::ZeroOptimizer> zero)
      : session_(std::move(session)), model_(std::move(model)), zero_(std::move(zero)) {}

  const std::unique_ptr<Session> session_;
  const std::shared_ptr<Gpt> model_;
  const std::unique_ptr<sherd::torch::ZeroOptimizer> zero_;
};

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_SHARDED_GPT_H_
