#include "client/world_share.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/job_spec.h"

namespace sherd {

absl::Status WorldShare::Check(const Rules& rules, int stage) {
  const auto bad = [](auto... what) { return absl::InvalidArgumentError(absl::StrCat(what...)); };
  if (rules.accumulation < 1) return bad("accumulation is ", rules.accumulation, ": it must be at least 1");
  if (rules.global_batch < 0)
    return bad("the global batch is ", rules.global_batch, ": it must not be negative");
  const int v = rules.virtual_ranks;
  if (v == 0) return absl::OkStatus();
  if (v < 1 || v > kMaxWorldSize || (v & (v - 1)) != 0) {
    return bad("virtual_ranks is ", v, ": it must be a power of two, at most ", kMaxWorldSize);
  }
  if (stage < 2) return bad("virtual_ranks needs stage 2 or more, where each is delivered; stage is ", stage);
  if (rules.accumulation != 1) {
    return bad("accumulation is ", rules.accumulation, " with virtual_ranks ", v,
               ": it follows from them; leave it out");
  }
  if (rules.on_resize == OnResize::kKeepMicroBatch) {
    return bad("virtual_ranks keep the global batch: the micro-batch cannot be kept instead");
  }
  if (rules.global_batch % v != 0) {
    return bad("the global batch is ", rules.global_batch, ", which ", v, " virtual ranks do not divide");
  }
  return absl::OkStatus();
}

absl::Status WorldShare::CheckWorld(int virtual_ranks, int world_size) {
  if (virtual_ranks == 0 || virtual_ranks % world_size == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(world_size, " trainers do not divide the job's ",
                                                 virtual_ranks,
                                                 " virtual ranks; any power of two up to them does"));
}

void WorldShare::Enter(int world_size, int rank) {
  world_size_ = std::max(1, world_size);
  rank_ = rank;
}

int WorldShare::micros() const {
  return rules_.virtual_ranks > 0 ? rules_.virtual_ranks / world_size_ : rules_.accumulation;
}

int64_t WorldShare::global_batch() const {
  if (rules_.global_batch == 0 || rules_.on_resize == OnResize::kKeepGlobalBatch) return rules_.global_batch;
  return std::max<int64_t>(1, rules_.global_batch * world_size_ / rules_.first_world);
}

SampleRange WorldShare::Samples(int micro) const {
  if (rules_.global_batch == 0) return {};
  const int v = rules_.virtual_ranks;
  if (v > 0) return ShareOf(rules_.global_batch, v, int64_t{micro} * world_size_ + rank_, 1, 0);
  return ShareOf(global_batch(), world_size_, rank_, rules_.accumulation, micro);
}

uint64_t WorldShare::Seed(uint64_t step, int micro) const {
  if (rules_.virtual_ranks == 0) return SeedOf(rules_.seed, step, rank_, micro);
  return SeedOf(rules_.seed, step, micro * world_size_ + rank_, 0);
}

double WorldShare::nominal_samples() const {
  if (rules_.global_batch == 0) return 1;
  const int64_t shares =
      rules_.virtual_ranks > 0 ? rules_.virtual_ranks : int64_t{rules_.first_world} * rules_.accumulation;
  const int64_t most = (rules_.global_batch + shares - 1) / shares;
  return static_cast<double>(most);
}

double WorldShare::rate_factor() const {
  if (rules_.global_batch == 0 || rules_.rate == RateRule::kNone) return 1;
  const double k = static_cast<double>(global_batch()) / static_cast<double>(rules_.global_batch);
  return rules_.rate == RateRule::kLinear ? k : std::sqrt(k);
}

}  // namespace sherd
