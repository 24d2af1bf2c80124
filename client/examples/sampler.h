// Which bytes of the text a training step looks at: a pure function, so that any rank of any incarnation, at
// any world size, computes the same samples without having been told.
//
//   Sampler sampler(/*seed=*/1, text.train().size(), /*context=*/128);
//   SampleRange mine = ShareOf(/*global_batch=*/8, /*world_size=*/3, /*rank=*/1, /*micros=*/2, /*micro=*/0);
//   for (int64_t i = mine.begin; i < mine.end; ++i) window at sampler.Offset(step, i) ...
#ifndef SHERD_CLIENT_EXAMPLES_SAMPLER_H_
#define SHERD_CLIENT_EXAMPLES_SAMPLER_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sherd::examples {

// Immutable.
class Sampler {
 public:
  // REQUIRES: text_bytes > context >= 1.
  Sampler(uint64_t seed, int64_t text_bytes, int64_t context)
      : seed_(seed), offsets_(static_cast<uint64_t>(text_bytes - context)) {}

  // Where sample `index` of step `step` begins: uniform over all offsets with room for context + 1 bytes.
  int64_t Offset(uint64_t step, int64_t index) const;

 private:
  uint64_t seed_;
  uint64_t offsets_;
};

// What must be equal for a restarted trainer to go on with the right samples. It travels in the step's blob.
struct SamplerState {
  uint64_t seed = 0;
  uint64_t step = 0;  // updates made; the next samples are those of step + 1
  int64_t global_batch = 0;
  int64_t context = 0;
  uint32_t text_crc = 0;

  // One line of text, about 100 bytes.
  std::string Serialize() const;
  // kInvalidArgument: `blob` was not made by Serialize of this version.
  static absl::StatusOr<SamplerState> Parse(absl::string_view blob);
};

// OK if a trainer that would sample by `mine` may go on from `saved` (whose step it then takes).
// kFailedPrecondition names the first field that differs, both values and the flag to set.
absl::Status CheckResume(const SamplerState& saved, const SamplerState& mine);

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_SAMPLER_H_
