// The kernels against memory: each one's time over the time its bytes take at the best rate that any access
// pattern reached on the same arrays in the same run. See bench/README.md.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "bench/memory_patterns.h"
#include "bench/memory_rate.h"
#include "bench/pinned_threads.h"
#include "kernels/block.h"
#include "kernels/convert.h"
#include "kernels/optimizer.h"
#include "kernels/reduce.h"
#include "kernels/reduce_groups.h"
#include "runtime/segment.h"

namespace sherd {
namespace bench {
namespace {

using kernels::DType;
using kernels::kBlockElements;

constexpr std::pair<const char*, DType> kHalves[] = {{"bf16", DType::kBFloat16}, {"fp16", DType::kFloat16}};

constexpr int kArrays = 5;
constexpr int64_t kChunkElements = 512 * 1024;

struct Options {
  int64_t elements = 64'000'000;
  int rounds = 7;
  bool small_pages = false;
  bool json = false;
};

// What one thread does with elements [begin, end).
using Work = std::function<void(int64_t begin, int64_t end)>;

struct Entry {
  std::string name;
  std::string mix;  // of MemoryPattern
  int bytes_per_element;
  bool is_kernel;  // else a pattern, whose rate counts for the bound
  Work work;
  std::vector<double> chunk_seconds = {};  // the best of all rounds, for each chunk
  double seconds = 0;                      // of the thread that took longest
};

class KernelsBench {
 public:
  explicit KernelsBench(const Options& options)
      : options_(options), blocks_(options.elements / kBlockElements) {
    for (int k = 0; k < kArrays; ++k) {
      const int64_t elements = options.elements + kBlockElements;
      if (options.small_pages) {
        memory_[k] = runtime::Segment::Anonymous(elements * 4).value();
      } else {
        memory_[k] = SharedArray(elements);
      }
      arrays_[k] = memory_[k].as<float>();
    }
    block_sumsq_.resize(blocks_);
    stamps_ = std::vector<std::atomic<uint64_t>>(blocks_);
    PinnedThreads(2).Run([this](int thread) {
      const int64_t half = blocks_ / 2 * kBlockElements;
      for (float* a : arrays_)
        std::fill(a + thread * half, thread == 0 ? a + half : a + options_.elements, 1.0f);
    });
  }

  // Each chunk of about a millisecond is timed by itself and its best round counts, so that other work on
  // this machine, which takes a core away for longer than that, disturbs a few chunks and not the sum.
  std::vector<Entry> Measure(int threads) {
    std::vector<Entry> entries = Entries();
    const int64_t chunks = (options_.elements + kChunkElements - 1) / kChunkElements;
    const auto first_chunk = [&](int thread) { return chunks * thread / threads; };
    for (Entry& e : entries) e.chunk_seconds.assign(chunks, std::numeric_limits<double>::infinity());
    PinnedThreads pool(threads);
    for (int round = 0; round < options_.rounds; ++round) {
      for (Entry& e : entries) {
        pool.Run([&](int thread) {
          for (int64_t c = first_chunk(thread); c < first_chunk(thread + 1); ++c) {
            const auto start = std::chrono::steady_clock::now();
            e.work(c * kChunkElements, std::min((c + 1) * kChunkElements, options_.elements));
            const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
            e.chunk_seconds[c] = std::min(e.chunk_seconds[c], took.count());
          }
        });
      }
    }
    for (Entry& e : entries) {
      for (int thread = 0; thread < threads; ++thread) {
        const auto begin = e.chunk_seconds.begin();
        e.seconds = std::max(
            e.seconds, std::accumulate(begin + first_chunk(thread), begin + first_chunk(thread + 1), 0.0));
      }
    }
    return entries;
  }

  // Nanoseconds for one block that is in the cache: what a call costs above memory. Best of some.
  nlohmann::json HotBlock() {
    const kernels::Scalars s = AdamWScalars();
    const kernels::UpdateFn update = kernels::Resolve(kernels::OptimizerKind::kAdamW);
    const kernels::JournaledUpdateFn journaled = kernels::ResolveJournaled(kernels::OptimizerKind::kAdamW);
    std::atomic<uint64_t> saved;
    alignas(64) static float undo[kernels::kMaxUndoElements];
    nlohmann::json out;
    out["adamw"] = NsPerCall([&] { update(Args(0), s, kBlockElements); });
    out["adamw_journaled"] = NsPerCall([&] { journaled(Args(0), s, undo, &saved); });
    out["reduce_2"] = NsPerCall([&] { Reduce(0, kBlockElements, false, false); });
    for (const auto& [name, dtype] : kHalves) {
      out[std::string("round_") + name] = NsPerCall([&, d = dtype] { Round(0, d, false); });
      out[std::string("round_") + name + "_stochastic"] = NsPerCall([&, d = dtype] { Round(0, d, true); });
      out[std::string("reduce_2_") + name] =
          NsPerCall([&, d = dtype] { Reduce(0, kBlockElements, false, false, d); });
    }
    return out;
  }

 private:
  static kernels::Scalars AdamWScalars() {
    kernels::Hyper hyper;
    hyper.weight_decay = 0.01;
    return kernels::Prepare(kernels::OptimizerKind::kAdamW, hyper, 10, 0.5f);
  }

  kernels::UpdateArgs Args(int64_t at) const {
    return {arrays_[0] + at, {arrays_[1] + at, arrays_[2] + at, nullptr}, arrays_[3] + at};
  }

  // out is array 4 or, to accumulate, array 2.
  void Reduce(int64_t begin, int64_t end, bool accumulate, bool stream, DType dtype = DType::kFloat32) {
    // 0.5 keeps every array of ones at one, and costs the multiplication that a mean over ranks costs.
    const float scale = accumulate ? 1e-6f : 0.5f;
    const auto at = [&](int array) {
      return reinterpret_cast<const char*>(arrays_[array]) + begin * SizeOf(dtype);
    };
    const kernels::Source sources[] = {{at(0), scale, dtype}, {at(3), scale, dtype}};
    kernels::ReduceBlocks(sources, 2, accumulate, arrays_[accumulate ? 2 : 4] + begin,
                          (end - begin) / kBlockElements, &block_sumsq_[begin / kBlockElements], stream);
  }

  // Two groups of one source each, as two hosts have them: here and come ready-made.
  void ReduceTwoGroups(int64_t begin, int64_t end, DType dtype, DType wire) {
    const auto at = [&](int array, DType type) {
      return reinterpret_cast<const char*>(arrays_[array]) + begin * SizeOf(type);
    };
    const kernels::Source here = {at(0, dtype), 0.5f, dtype}, come = {at(3, wire), 1.0f, wire};
    const kernels::SourceGroup groups[] = {{&here, 1}, {&come, 1}};
    kernels::ReduceGroups(groups, 2, wire, false, arrays_[4] + begin, (end - begin) / kBlockElements,
                          &block_sumsq_[begin / kBlockElements], /*stream=*/true);
  }

  // What another host is sent of two ranks.
  void Partial(int64_t begin, int64_t end, DType dtype) {
    const auto at = [&](int array) {
      return reinterpret_cast<const char*>(arrays_[array]) + begin * SizeOf(dtype);
    };
    const kernels::Source sources[] = {{at(0), 0.5f, dtype}, {at(3), 0.5f, dtype}};
    kernels::ReducePartial(sources, 2, dtype, reinterpret_cast<char*>(arrays_[4]) + begin * SizeOf(dtype),
                           (end - begin) / kBlockElements);
  }

  // A block's parameters to 16 bits, in array 4.
  void Round(int64_t at, DType dtype, bool stochastic) {
    auto* const to = reinterpret_cast<uint16_t*>(arrays_[4]) + at;
    if (stochastic) {
      kernels::RoundBlocks(arrays_[0] + at, at / kBlockElements, 1, dtype, to, {1, 2});
    } else {
      kernels::FromFloat(arrays_[0] + at, kBlockElements, dtype, to);
    }
  }

  // As a server does it: a stamp, the update in place behind an undo buffer, a stamp.
  void Journaled(int64_t begin, int64_t end, DType compute = DType::kFloat32) {
    const kernels::Scalars s = AdamWScalars();
    const kernels::JournaledUpdateFn update = kernels::ResolveJournaled(kernels::OptimizerKind::kAdamW);
    alignas(64) float undo[kernels::kMaxUndoElements];
    std::atomic<uint64_t> saved;
    for (int64_t at = begin; at < end; at += kBlockElements) {
      std::atomic<uint64_t>& stamp = stamps_[at / kBlockElements];
      saved.store(0, std::memory_order_relaxed);
      stamp.store(1, std::memory_order_release);
      update(Args(at), s, undo, &saved);
      if (compute != DType::kFloat32) Round(at, compute, false);
      stamp.store(2, std::memory_order_release);
    }
  }

  // LAMB in its two passes, journaled: no parameter moves before the norms of all blocks stand.
  void LambMove(int64_t begin, int64_t end) {
    alignas(64) float undo[kernels::kMaxUndoElements];
    std::atomic<uint64_t> saved;
    for (int64_t at = begin; at < end; at += kBlockElements) {
      double norms[2];
      lamb_.move(Args(at), arrays_[3] + at, lamb_scalars_, undo, &saved, norms);
      block_sumsq_[at / kBlockElements] = norms[1];
    }
  }
  void LambFollow(int64_t begin, int64_t end) {
    alignas(64) float undo[kernels::kMaxUndoElements];
    std::atomic<uint64_t> saved;
    for (int64_t at = begin; at < end; at += kBlockElements)
      lamb_.follow(arrays_[0] + at, arrays_[3] + at, lamb_scalars_, undo, &saved);
  }

  std::vector<Entry> Entries() {
    std::vector<Entry> entries;
    for (const MemoryPattern& p : MemoryPatterns()) {
      entries.push_back({p.name, p.mix, p.bytes_per_element, false,
                         [this, &p](int64_t b, int64_t e) { p.run(arrays_, b, e); }});
    }
    const auto update = [this](kernels::OptimizerKind kind) {
      const kernels::Scalars s = kind == kernels::OptimizerKind::kAdamW
                                     ? AdamWScalars()
                                     : kernels::Prepare(kind, kernels::Hyper(), 10, 0.5f);
      return [this, kind, s](int64_t b, int64_t e) { kernels::Resolve(kind)(Args(b), s, e - b); };
    };
    entries.push_back({"adamw", "update", 28, true, update(kernels::OptimizerKind::kAdamW)});
    entries.push_back(
        {"adamw, journaled", "update", 28, true, [this](int64_t b, int64_t e) { Journaled(b, e); }});
    entries.push_back({"sgd", "update", 20, true, update(kernels::OptimizerKind::kSgd)});
    entries.push_back({"lamb, move", "update", 28, true, [this](int64_t b, int64_t e) { LambMove(b, e); }});
    entries.push_back(
        {"lamb, follow", "accumulate", 12, true, [this](int64_t b, int64_t e) { LambFollow(b, e); }});
    entries.push_back({"reduce 2, streamed", "triad", 12, true,
                       [this](int64_t b, int64_t e) { Reduce(b, e, false, true); }});
    entries.push_back({"reduce 2, stored", "triad", 12, true,
                       [this](int64_t b, int64_t e) { Reduce(b, e, false, false); }});
    entries.push_back({"reduce 2, accumulated", "accumulate", 16, true,
                       [this](int64_t b, int64_t e) { Reduce(b, e, true, false); }});
    entries.push_back({"reduce 2 groups, streamed", "triad", 12, true, [this](int64_t b, int64_t e) {
                         ReduceTwoGroups(b, e, DType::kFloat32, DType::kFloat32);
                       }});
    entries.push_back({"partial of 2, stored", "triad", 12, true,
                       [this](int64_t b, int64_t e) { Partial(b, e, DType::kFloat32); }});
    for (const auto& [name, dtype] : kHalves) {
      entries.push_back({std::string("adamw, journaled, ") + name, "update", 30, true,
                         [this, d = dtype](int64_t b, int64_t e) { Journaled(b, e, d); }});
      entries.push_back({std::string("reduce 2 groups, streamed, ") + name, "triad", 8, true,
                         [this, d = dtype](int64_t b, int64_t e) { ReduceTwoGroups(b, e, d, d); }});
      entries.push_back({std::string("partial of 2, stored, ") + name, "triad", 6, true,
                         [this, d = dtype](int64_t b, int64_t e) { Partial(b, e, d); }});
      entries.push_back({std::string("reduce 2, streamed, ") + name, "triad", 8, true,
                         [this, d = dtype](int64_t b, int64_t e) { Reduce(b, e, false, true, d); }});
    }
    return entries;
  }

  static double NsPerCall(const std::function<void()>& call) {
    constexpr int kCalls = 2000;
    double best = std::numeric_limits<double>::infinity();
    for (int round = 0; round < 50; ++round) {
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < kCalls; ++i) call();
      const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
      best = std::min(best, took.count() / kCalls);
    }
    return best;
  }

  const Options options_;
  const int64_t blocks_;
  runtime::Segment memory_[kArrays];
  float* arrays_[kArrays];
  std::vector<double> block_sumsq_;
  std::vector<std::atomic<uint64_t>> stamps_;
  const kernels::TwoPasses lamb_ = kernels::ResolveTwoPasses(kernels::OptimizerKind::kLamb);
  const kernels::Scalars lamb_scalars_ =
      kernels::Prepare(kernels::OptimizerKind::kLamb, kernels::Hyper(), 10, 0.5f);
};

nlohmann::json Report(const Options& options, int threads, const std::vector<Entry>& entries) {
  const auto rate = [&](const Entry& e) { return e.bytes_per_element * options.elements / e.seconds; };
  const Entry* best = &entries[0];
  std::map<std::string, double> best_of_mix;
  for (const Entry& e : entries) {
    if (e.is_kernel) continue;
    if (rate(e) > rate(*best)) best = &e;
    best_of_mix[e.mix] = std::max(best_of_mix[e.mix], rate(e));
  }
  std::fprintf(stderr, "\n%d thread%s; bound: %.1f GB/s (%s)\n", threads, threads == 1 ? "" : "s",
               rate(*best) / 1e9, best->name.c_str());
  std::fprintf(stderr, "%-32s %8s %10s %10s %8s %8s\n", "", "B/elem", "ms", "GB/s", "x bound", "x mix");
  nlohmann::json out = {
      {"threads", threads}, {"bound_gb_per_s", rate(*best) / 1e9}, {"bound_pattern", best->name}};
  for (const Entry& e : entries) {
    const double to_bound = rate(*best) / rate(e);
    const double to_mix = best_of_mix[e.mix] / rate(e);
    std::fprintf(stderr, "%-32s %8d %10.1f %10.1f %8.2f %8.2f\n", e.name.c_str(), e.bytes_per_element,
                 e.seconds * 1e3, rate(e) / 1e9, to_bound, to_mix);
    out[e.is_kernel ? "kernels" : "patterns"].push_back({{"name", e.name},
                                                         {"bytes_per_element", e.bytes_per_element},
                                                         {"ms", e.seconds * 1e3},
                                                         {"bound_ms", e.seconds * 1e3 / to_bound},
                                                         {"gb_per_s", rate(e) / 1e9},
                                                         {"ratio_to_bound", to_bound},
                                                         {"ratio_to_same_mix", to_mix}});
  }
  return out;
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("The kernels against the best memory rate of this machine");
  app.add_flag("--json", options.json, "print one JSON object to stdout (the table goes to stderr)");
  app.add_option("--elements", options.elements,
                 "fp32 elements of each of five arrays; rounded down to blocks")
      ->check(CLI::Range(int64_t{1} << 16, int64_t{1} << 32));
  app.add_option("--rounds", options.rounds, "for each chunk the best of this many counts")
      ->check(CLI::Range(1, 1000));
  app.add_flag("--small-pages", options.small_pages, "pages of 4 KiB, not as segments have them");
  CLI11_PARSE(app, argc, argv);
  options.elements -= options.elements % kBlockElements;

  KernelsBench bench(options);
  nlohmann::json out = {
      {"elements", options.elements}, {"simd", kernels::SimdName()}, {"small_pages", options.small_pages}};
  std::fprintf(stderr, "%lld elements, %s, %s pages\n", static_cast<long long>(options.elements),
               kernels::SimdName(), options.small_pages ? "4 KiB" : "the segments'");
  for (int threads : {1, 2}) out["runs"].push_back(Report(options, threads, bench.Measure(threads)));
  out["hot_block_ns"] = bench.HotBlock();
  std::fprintf(stderr, "\none block in cache, ns a call: %s\n", out["hot_block_ns"].dump().c_str());
  if (options.json) std::printf("%s\n", out.dump(1).c_str());
  return 0;
}

}  // namespace
}  // namespace bench
}  // namespace sherd

int main(int argc, char** argv) { return sherd::bench::Main(argc, argv); }
