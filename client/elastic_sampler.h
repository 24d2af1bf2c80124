// Which samples of a data set a step looks at, in a job whose ranks come, go, die and change in number.
// Torch-free.
//
//   ElasticSampler sampler(data.size(), /*seed=*/1);
//   if (!zero->blob().empty()) sampler.Restore(zero->blob());
//   while (auto batch = zero->Begin()) {
//     if (batch.joined) sampler.Restore(zero->blob());
//     for (int64_t i = batch.samples.begin; i < batch.samples.end; ++i) Use(data[sampler.Index(i)]);
//     ...
//     zero->SetBlob(sampler.StateAfter(batch.global_batch));
//     auto info = zero->Step(loss);
//     if (info->complete) sampler.Advance(batch.global_batch);
//   }
//
// Samples are handed out pass after pass; within a pass each sample once, in an order drawn from (seed,
// pass). A step takes the next `global_batch` of them, ranks share them out by ShareOf. So as long as the
// state is committed with the step, as above, each sample is used exactly once a pass: whoever dies, whatever
// the world and the global batch become, and when a step is given up and computed again. All ranks have the
// same state, so any rank's blob will do, at any other number of ranks too.
//
// Value; thread-compatible.
#ifndef SHERD_CLIENT_ELASTIC_SAMPLER_H_
#define SHERD_CLIENT_ELASTIC_SAMPLER_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace sherd {

class ElasticSampler {
 public:
  // REQUIRES: 1 <= size < 2^62.
  ElasticSampler(int64_t size, uint64_t seed) : size_(static_cast<uint64_t>(size)), seed_(seed) {}

  // The sample of the data set, 0..size-1, that is the step's `i`-th over all ranks. O(1) on average.
  // REQUIRES: i >= 0.
  int64_t Index(int64_t i) const;

  // The step is done: the next one begins behind its samples.
  void Advance(int64_t global_batch) { position_ += static_cast<uint64_t>(global_batch); }

  // Samples used so far, over all passes.
  uint64_t position() const { return position_; }
  // Passes begun; the first is 0.
  uint64_t pass() const { return position_ / size_; }

  // One line of text, below 100 bytes: where the sampler stands, and once a step of `global_batch` is done.
  std::string State() const { return StateAfter(0); }
  std::string StateAfter(int64_t global_batch) const;
  // Goes on where `state` stands; the sampler is unchanged after an error.
  //   INVALID_ARGUMENT     not written by State
  //   FAILED_PRECONDITION  of another data set or seed: names which, and both values
  absl::Status Restore(absl::string_view state);

 private:
  uint64_t size_;
  uint64_t seed_;
  uint64_t position_ = 0;
};

}  // namespace sherd

#endif  // SHERD_CLIENT_ELASTIC_SAMPLER_H_
