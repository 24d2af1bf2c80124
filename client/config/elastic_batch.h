// The batch of a job that may run with different numbers of trainers: one that as many numbers as possible
// divide. By the rule of DeepSpeed's elasticity, versions 0.1 and 0.2, so that a job moved here keeps its
// batch.
//
//   ElasticRequest request;  request.max_batch = 2000;  request.micro_batches = {2, 4, 6};
//   ElasticBatchSizes(request, /*world_size=*/8)            // {1680, 6, 35}
//
// Candidates are each micro-batch, and the least common multiple of all, times the largest highly composite
// number that keeps them within max_batch; the one that most numbers of trainers divide wins.
//
// Pure; thread-safe. O(candidates x micro-batches x sqrt(max_batch)).
#ifndef SHERD_CLIENT_CONFIG_ELASTIC_BATCH_H_
#define SHERD_CLIENT_CONFIG_ELASTIC_BATCH_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "client/config/batch_sizes.h"

namespace sherd::config {

// Largest max_batch: bounds the search.
inline constexpr int64_t kMaxElasticBatch = 1000000000;

struct ElasticRequest {
  int64_t max_batch = 2000;                        // 1..kMaxElasticBatch
  std::vector<int64_t> micro_batches = {2, 4, 6};  // each >= 1
  int64_t min_ranks = 1, max_ranks = 10000;        // trainers, >= 1
  bool prefer_larger = true;                       // of batches that equally many numbers divide
  bool by_hosts = true;  // version 0.2: whole hosts; a number that does not divide gets a batch of its own
  int64_t ranks_per_host = 1;  // >= 1
};

// INVALID_ARGUMENT: no such batch, or `world_size` trainers do not divide it; says which numbers do.
absl::StatusOr<BatchSizes> ElasticBatchSizes(const ElasticRequest& request, int world_size);

}  // namespace sherd::config

#endif  // SHERD_CLIENT_CONFIG_ELASTIC_BATCH_H_
