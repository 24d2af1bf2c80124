#include "client/elastic_sampler.h"

#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace sherd {
namespace {

constexpr absl::string_view kFormat = "elastic-sampler/1";

uint64_t Mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// A permutation of [0, 4^half_bits): a Feistel network, whose rounds are drawn from `key`.
uint64_t Shuffle(uint64_t x, int half_bits, uint64_t key) {
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  uint64_t left = x >> half_bits, right = x & mask;
  for (uint64_t round = 0; round < 6; ++round) {
    const uint64_t next = left ^ (Mix(key ^ Mix(right ^ round << 56)) & mask);
    left = right;
    right = next;
  }
  return left << half_bits | right;
}

}  // namespace

int64_t ElasticSampler::Index(int64_t i) const {
  const uint64_t at = position_ + static_cast<uint64_t>(i);
  int half_bits = 1;
  while ((uint64_t{1} << (2 * half_bits)) < size_) ++half_bits;
  const uint64_t key = Mix(Mix(seed_) ^ (at / size_));
  // What falls outside is walked on from: the cycle of a number inside comes back inside.
  uint64_t x = at % size_;
  do {
    x = Shuffle(x, half_bits, key);
  } while (x >= size_);
  return static_cast<int64_t>(x);
}

std::string ElasticSampler::StateAfter(int64_t global_batch) const {
  return absl::StrCat(kFormat, " size=", size_, " seed=", seed_,
                      " position=", position_ + static_cast<uint64_t>(global_batch));
}

absl::Status ElasticSampler::Restore(absl::string_view state) {
  const std::vector<absl::string_view> fields = absl::StrSplit(state, ' ');
  uint64_t values[3] = {};
  const absl::string_view names[3] = {"size=", "seed=", "position="};
  bool valid = fields.size() == 4 && fields[0] == kFormat;
  for (int f = 0; valid && f < 3; ++f) {
    absl::string_view field = fields[f + 1];
    valid = absl::ConsumePrefix(&field, names[f]) && absl::SimpleAtoi(field, &values[f]);
  }
  if (!valid) {
    return absl::InvalidArgumentError(absl::StrCat("a sampler's state of ", state.size(), " bytes is not a ",
                                                   kFormat, " record: was it written by another program?"));
  }
  if (values[0] != size_ || values[1] != seed_) {
    const bool size = values[0] != size_;
    return absl::FailedPreconditionError(
        absl::StrCat("the job samples ", size ? "a data set of " : "with seed ", size ? values[0] : values[1],
                     size ? " samples" : "", ", this trainer ", size ? "one of " : "with ",
                     size ? size_ : seed_, ": give it the same"));
  }
  position_ = values[2];
  return absl::OkStatus();
}

}  // namespace sherd
