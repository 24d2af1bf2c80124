#include "bench/memory_rate.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <utility>

namespace sherd::bench {
namespace {

constexpr int64_t kChunkElements = 1 << 17;

}  // namespace

runtime::Segment SharedArray(int64_t elements) {
  absl::StatusOr<runtime::Segment> memory = runtime::Segment::Anonymous(elements * 4);
  const absl::Status there = memory.ok() ? memory->Populate(2, nullptr) : memory.status();
  if (!there.ok()) {
    std::fprintf(stderr, "%s\n", there.ToString().c_str());
    std::exit(1);
  }
  return *std::move(memory);
}

double MemoryRate::Measure() {
  PinnedThreads threads(2);
  const auto half = [this](int thread) {
    return std::make_pair(thread * elements_ / 2, (thread + 1) * elements_ / 2);
  };
  if (arrays_[0] == nullptr) {
    for (int k = 0; k < kPatternArrays; ++k) {
      memory_[k] = SharedArray(elements_);
      arrays_[k] = memory_[k].as<float>();
    }
    threads.Run([&](int thread) {
      for (float* a : arrays_) std::fill(a + half(thread).first, a + half(thread).second, 1.0f);
    });
  }
  const std::vector<MemoryPattern>& patterns = MemoryPatterns();
  const int64_t chunks = elements_ / kChunkElements;
  chunk_seconds_.resize(patterns.size(), std::vector<double>(chunks, 1e9));
  double now = 0;
  for (size_t i = 0; i < patterns.size(); ++i) {
    std::vector<double>& best = chunk_seconds_[i];
    double slower = 0;           // of the two threads
    double seconds[2] = {0, 0};  // of this call
    threads.Run([&](int thread) {
      for (int64_t c = chunks * thread / 2; c < chunks * (thread + 1) / 2; ++c) {
        const auto start = std::chrono::steady_clock::now();
        patterns[i].run(arrays_, c * kChunkElements, (c + 1) * kChunkElements);
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        best[c] = std::min(best[c], took.count());
        seconds[thread] += took.count();
      }
    });
    for (int thread = 0; thread < 2; ++thread) {
      slower = std::max(slower, std::accumulate(best.begin() + chunks * thread / 2,
                                                best.begin() + chunks * (thread + 1) / 2, 0.0));
    }
    const double bytes = static_cast<double>(patterns[i].bytes_per_element) * static_cast<double>(elements_);
    now = std::max(now, bytes / std::max(seconds[0], seconds[1]));
    const double rate = bytes / slower;
    if (rate <= best_) continue;
    best_ = rate;
    pattern_ = patterns[i].name;
  }
  return now;
}

}  // namespace sherd::bench
