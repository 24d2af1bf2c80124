#include "client/config/batch_sizes.h"

#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace sherd::config {
namespace {

using Wide = __int128;  // of products of three numbers

std::string Show(absl::optional<int64_t> v) { return v.has_value() ? absl::StrCat(*v) : "(not given)"; }

absl::Status Wrong(const AskedBatchSizes& asked, int world_size, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("train_batch_size ", Show(asked.train), ", train_micro_batch_size_per_gpu ",
                   Show(asked.micro), ", gradient_accumulation_steps ", Show(asked.accumulation), ", ",
                   world_size, " trainer", world_size == 1 ? "" : "s", ": ", why));
}

}  // namespace

absl::StatusOr<BatchSizes> FillBatchSizes(const AskedBatchSizes& asked, int world_size) {
  if (!asked.train.has_value() && !asked.micro.has_value()) {
    return Wrong(asked, world_size, "state train_batch_size or train_micro_batch_size_per_gpu");
  }
  // 1 unless the other two say more.
  const bool derived = !asked.accumulation.has_value() && asked.train.has_value() && asked.micro.has_value();
  BatchSizes sizes;
  sizes.accumulation = asked.accumulation.value_or(1);
  if (derived) {
    const Wide once = Wide(*asked.micro) * world_size;
    if (Wide(*asked.train) % once != 0) {
      return Wrong(asked, world_size,
                   absl::StrCat("the first is no multiple of ", *asked.micro, " x ", world_size));
    }
    sizes.accumulation = static_cast<int64_t>(Wide(*asked.train) / once);
  }
  const Wide shares = Wide(sizes.accumulation) * world_size;
  if (!asked.micro.has_value()) {
    if (Wide(*asked.train) % shares != 0) {
      return Wrong(asked, world_size,
                   absl::StrCat("the first is no multiple of ", sizes.accumulation, " x ", world_size));
    }
    sizes.micro = static_cast<int64_t>(Wide(*asked.train) / shares);
  } else {
    sizes.micro = *asked.micro;
  }
  const Wide train = Wide(sizes.micro) * shares;
  if (train > std::numeric_limits<int64_t>::max() || train < sizes.micro) {
    return Wrong(asked, world_size, "their product is too large");
  }
  sizes.train = static_cast<int64_t>(train);
  if (asked.train.value_or(sizes.train) != sizes.train) {
    return Wrong(asked, world_size,
                 absl::StrCat(sizes.micro, " x ", sizes.accumulation, " x ", world_size, " is ", sizes.train,
                              ", not ", *asked.train));
  }
  return sizes;
}

}  // namespace sherd::config
