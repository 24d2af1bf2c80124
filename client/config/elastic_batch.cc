#include "client/config/elastic_batch.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace sherd::config {
namespace {

// Each has more divisors than any smaller number.
constexpr int64_t kHighlyComposite[] = {
    1,     2,     4,     6,      12,     24,     36,     48,     60,     120,    180,    240,   360,
    720,   840,   1260,  1680,   2520,   5040,   7560,   10080,  15120,  20160,  25200,  27720, 45360,
    50400, 55440, 83160, 110880, 166320, 221760, 277200, 332640, 498960, 554400, 665280, 720720};

struct Candidate {
  int64_t batch = 0;
  std::set<int64_t> ranks;  // that divide it into whole micro-batches
};

std::vector<int64_t> CandidateBatches(const ElasticRequest& r, int64_t max_batch) {
  std::vector<int64_t> bases = r.micro_batches;
  int64_t multiple = 1;
  for (int64_t m : r.micro_batches) {
    if (multiple <= max_batch) multiple = std::lcm(multiple, m);
  }
  bases.push_back(multiple);
  std::vector<int64_t> batches;
  for (int64_t base : bases) {
    if (base > max_batch) continue;
    const int64_t most = max_batch / base;
    const auto above = std::upper_bound(std::begin(kHighlyComposite), std::end(kHighlyComposite), most);
    // Past the end of the list DeepSpeed's search wraps to its last number as well.
    batches.push_back(*(above - 1) * base);
  }
  return batches;
}

std::set<int64_t> RanksOf(int64_t batch, const ElasticRequest& r, int64_t min_ranks, int64_t max_ranks) {
  std::set<int64_t> ranks;
  for (int64_t micro : r.micro_batches) {
    if (batch % micro != 0) continue;
    const int64_t whole = batch / micro;
    for (int64_t d = 1; d * d <= whole; ++d) {
      if (whole % d != 0) continue;
      for (int64_t divisor : {d, whole / d}) {
        if (divisor >= min_ranks && divisor <= max_ranks) ranks.insert(divisor);
      }
    }
  }
  return ranks;
}

Candidate BestOf(const ElasticRequest& r, int64_t max_batch, int64_t min_ranks, int64_t max_ranks) {
  Candidate best;
  best.batch = *std::min_element(r.micro_batches.begin(), r.micro_batches.end());
  for (int64_t batch : CandidateBatches(r, max_batch)) {
    std::set<int64_t> ranks = RanksOf(batch, r, min_ranks, max_ranks);
    const bool preferred = r.prefer_larger ? batch > best.batch : batch < best.batch;
    if (ranks.size() > best.ranks.size() || (ranks.size() == best.ranks.size() && preferred)) {
      best.batch = batch;
      best.ranks = std::move(ranks);
    }
  }
  return best;
}

// The largest, or smallest, multiple of a micro-batch on all ranks.
int64_t BatchFor(const ElasticRequest& r, int world_size) {
  int64_t chosen = -1;
  for (int64_t micro : r.micro_batches) {
    const int64_t once = micro * world_size;
    const int64_t batch = r.max_batch / once * once;
    if (chosen < 0 || (r.prefer_larger ? batch > chosen : batch < chosen)) chosen = batch;
  }
  return chosen;
}

}  // namespace

absl::StatusOr<BatchSizes> ElasticBatchSizes(const ElasticRequest& r, int world_size) {
  const int64_t per_host = r.by_hosts ? r.ranks_per_host : 1;
  const int64_t max_batch = r.max_batch / per_host;
  const auto stated = [&](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("elasticity: max_train_batch_size ", r.max_batch, ", micro_batch_sizes [",
                     absl::StrJoin(r.micro_batches, ", "), "], ", world_size, " trainers: ", why));
  };
  if (*std::max_element(r.micro_batches.begin(), r.micro_batches.end()) > max_batch) {
    return stated(absl::StrCat("a micro-batch is larger than ", max_batch, ": remove it"));
  }
  const Candidate best = BestOf(r, max_batch, std::max<int64_t>(r.min_ranks / per_host, 1),
                                std::max<int64_t>(r.max_ranks / per_host, 1));
  BatchSizes sizes;
  sizes.train = best.batch * per_host;
  if (world_size % per_host != 0 || best.ranks.count(world_size / per_host) == 0) {
    if (!r.by_hosts) {
      return stated(best.ranks.empty() ? std::string("no batch suits min_gpus..max_gpus")
                                       : absl::StrCat("the batch of ", sizes.train, " is for ",
                                                      absl::StrJoin(best.ranks, ", ").substr(0, 120)));
    }
    sizes.train = BatchFor(r, world_size);
  }
  std::vector<int64_t> micros = r.micro_batches;
  std::sort(micros.rbegin(), micros.rend());
  for (int64_t micro : micros) {
    if (sizes.train < world_size || sizes.train % (micro * world_size) != 0) continue;
    sizes.micro = micro;
    sizes.accumulation = sizes.train / (micro * world_size);
    return sizes;
  }
  return stated("no micro-batch divides their shares: fewer trainers, or a larger batch");
}

}  // namespace sherd::config
