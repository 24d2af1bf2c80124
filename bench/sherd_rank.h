// One trainer of a Sherd job, for benchmarks: workload O under ZeroOptimizer.
#ifndef SHERD_BENCH_SHERD_RANK_H_
#define SHERD_BENCH_SHERD_RANK_H_

#include <cstdint>
#include <memory>
#include <string>

#include "bench/step_model.h"
#include "client/options.h"

namespace sherd::bench {

class SherdRank {
 public:
  // Attaches to the job behind `endpoint`; blocks until the others did what they must. Ends the process with
  // a line on any error.
  // `reduce_groups`: of several hosts, the ranks of each ("1,1"); empty: all are one group.
  SherdRank(const StepModel& model, const std::string& job, const std::string& endpoint, int rank,
            int world_size, int stage, const Stage3Options& stage3 = {},
            const std::string& reduce_groups = "");
  ~SherdRank();

  // What a program that trains something has loaded and set up.
  static void WarmUpLibraries();

  // One whole step: Begin, forward, backward, Step.
  void Step();
  // Bytes of gradients copied to staging so far, and of staging reserved.
  int64_t staged_bytes() const;
  int64_t staging_bytes() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sherd::bench

#endif  // SHERD_BENCH_SHERD_RANK_H_
