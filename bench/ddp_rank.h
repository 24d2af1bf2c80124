// What each rank does in data-parallel training without sharding, in C++: libtorch's autograd and optimizer,
// gradients summed by Gloo. The arms that bench:step compares Sherd with.
#ifndef SHERD_BENCH_DDP_RANK_H_
#define SHERD_BENCH_DDP_RANK_H_

#include <memory>
#include <string>

#include "bench/step_model.h"

namespace sherd::bench {

class DdpRank {
 public:
  // Ranks find each other through the file `rendezvous`; this one is at `address`.
  DdpRank(const StepModel& model, int rank, int world_size, const std::string& rendezvous,
          const std::string& address = "127.0.0.1");
  ~DdpRank();

  // Forward and backward alone.
  void Local();
  // Gradients are all-reduced in place as DDP's buckets are (each weight fills one), while backward goes on
  // or after it; then the mean, clip_grad_norm_(1.0) and libtorch's AdamW.
  void TorchStep(bool overlap);
  // The same, but mean, clip and AdamW in one pass over memory by Sherd's kernel, which libtorch 1.13 has no
  // like of: the best a rank could do.
  void FusedStep(bool overlap);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sherd::bench

#endif  // SHERD_BENCH_DDP_RANK_H_
