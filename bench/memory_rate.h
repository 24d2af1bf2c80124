// The best rate at which two cores together move memory here, over all access patterns of memory_patterns.h.
//
//   MemoryRate rate;
//   rate.Measure();                       // some times in the course of a run, between what is measured
//   rate.best();                          // bytes a second
#ifndef SHERD_BENCH_MEMORY_RATE_H_
#define SHERD_BENCH_MEMORY_RATE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "bench/memory_patterns.h"
#include "bench/pinned_threads.h"
#include "runtime/segment.h"

namespace sherd::bench {

// Memory as the servers' segments have it, in huge pages where the kernel makes them. Ends the process if
// there is none.
runtime::Segment SharedArray(int64_t elements);

// Thread-compatible. Takes four arrays of `elements` floats of shared memory at the first Measure.
class MemoryRate {
 public:
  // REQUIRES: elements is a multiple of 2 * 2^17.
  explicit MemoryRate(int64_t elements = 64 << 20) : elements_(elements) {}
  // Each pattern once, on both threads at the same time; under half a second. The rate of the fastest one in
  // this call: what memory gives now, to be held against what is measured beside it.
  double Measure();
  // Chunks of about a millisecond are timed by themselves and the best of all calls counts, so that other
  // work on the machine, which takes a core away for longer than that, disturbs a few chunks and not the
  // rate.
  double best() const { return best_; }
  const std::string& pattern() const { return pattern_; }

 private:
  const int64_t elements_;
  runtime::Segment memory_[kPatternArrays];
  float* arrays_[kPatternArrays] = {};
  std::vector<std::vector<double>> chunk_seconds_;  // of each pattern
  double best_ = 0;
  std::string pattern_;
};

}  // namespace sherd::bench

#endif  // SHERD_BENCH_MEMORY_RATE_H_
