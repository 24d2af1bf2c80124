#include "client/examples/sampler.h"

#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/splitmix.h"

namespace sherd::examples {
namespace {

constexpr absl::string_view kFormat = "gpt-sampler/1";

template <typename Int>
bool ReadField(absl::string_view field, absl::string_view key, Int* value) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(field, absl::MaxSplits('=', 1));
  return parts.first == key && absl::SimpleAtoi(parts.second, value);
}

absl::Status Differs(absl::string_view what, uint64_t saved, uint64_t mine, absl::string_view remedy) {
  return absl::FailedPreconditionError(absl::StrCat("the job was trained with ", what, " ", saved,
                                                    " but this trainer has ", mine, ": ", remedy));
}

}  // namespace

int64_t Sampler::Offset(uint64_t step, int64_t index) const {
  const uint64_t random = SplitMix64(SplitMix64(SplitMix64(seed_) ^ step) ^ static_cast<uint64_t>(index));
  // The high half of the product: uniform without a division (the bias is below text / 2^64).
  return static_cast<int64_t>(static_cast<unsigned __int128>(random) * offsets_ >> 64);
}

std::string SamplerState::Serialize() const {
  return absl::StrCat(kFormat, " seed=", seed, " step=", step, " global_batch=", global_batch,
                      " context=", context, " text_crc=", text_crc);
}

absl::StatusOr<SamplerState> SamplerState::Parse(absl::string_view blob) {
  const std::vector<absl::string_view> fields = absl::StrSplit(blob, ' ');
  SamplerState state;
  if (fields.size() != 6 || fields[0] != kFormat || !ReadField(fields[1], "seed", &state.seed) ||
      !ReadField(fields[2], "step", &state.step) ||
      !ReadField(fields[3], "global_batch", &state.global_batch) ||
      !ReadField(fields[4], "context", &state.context) ||
      !ReadField(fields[5], "text_crc", &state.text_crc)) {
    return absl::InvalidArgumentError(absl::StrCat("the job's ", blob.size(), "-byte trainer state is not a ",
                                                   kFormat, " record: was it written by another program?"));
  }
  return state;
}

absl::Status CheckResume(const SamplerState& saved, const SamplerState& mine) {
  if (saved.seed != mine.seed) return Differs("--seed", saved.seed, mine.seed, "give the same --seed");
  if (saved.global_batch != mine.global_batch) {
    return Differs("--global-batch", saved.global_batch, mine.global_batch, "give the same --global-batch");
  }
  if (saved.context != mine.context)
    return Differs("--context", saved.context, mine.context, "give the same --context");
  if (saved.text_crc != mine.text_crc) {
    return Differs("a text of crc", saved.text_crc, mine.text_crc, "give the same --text, unchanged");
  }
  return absl::OkStatus();
}

}  // namespace sherd::examples
