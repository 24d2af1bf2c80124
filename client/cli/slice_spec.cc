#include "client/cli/slice_spec.h"

#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace sherd::cli {

absl::StatusOr<SliceSpec> ParseSlice(absl::string_view text) {
  SliceSpec spec;
  if (absl::StripAsciiWhitespace(text).empty()) return spec;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    const auto error = [&](absl::string_view what) {
      return absl::InvalidArgumentError(
          absl::StrCat("slice \"", text, "\": \"", part, "\" ", what, "; write it like 0:10,:,3,::2"));
    };
    const std::vector<absl::string_view> numbers = absl::StrSplit(part, ':');
    if (numbers.size() > 3) return error("has too many colons");
    SliceSpecDimension dimension;
    dimension.index = numbers.size() == 1;
    for (size_t i = 0; i < numbers.size(); ++i) {
      const absl::string_view number = absl::StripAsciiWhitespace(numbers[i]);
      if (number.empty() && !dimension.index) continue;
      int64_t value = 0;
      if (!absl::SimpleAtoi(number, &value)) return error("is no range of integers");
      if (i == 2 && value < 1) return error("has a step below 1");
      if (i == 0) dimension.start = value;
      if (i == 1) dimension.stop = value;
      if (i == 2) dimension.step = value;
    }
    spec.push_back(dimension);
  }
  return spec;
}

absl::StatusOr<ResolvedSlice> Resolve(const SliceSpec& spec, const std::vector<int64_t>& shape) {
  if (spec.size() > shape.size()) {
    return absl::OutOfRangeError(
        absl::StrCat("the slice has ", spec.size(), " dimensions, the tensor ", shape.size()));
  }
  ResolvedSlice out;
  for (size_t d = 0; d < shape.size(); ++d) {
    const int64_t size = shape[d];
    Slice::Dimension dimension{0, size, 1};
    bool kept = true;
    if (d < spec.size()) {
      const SliceSpecDimension& wish = spec[d];
      const auto from_end = [&](int64_t value) { return value < 0 ? value + size : value; };
      dimension.start = wish.start ? from_end(*wish.start) : 0;
      dimension.stop = wish.index ? dimension.start + 1 : wish.stop ? from_end(*wish.stop) : size;
      dimension.step = wish.step;
      kept = !wish.index;
    }
    if (dimension.start < 0 || dimension.stop > size || dimension.start > dimension.stop) {
      return absl::OutOfRangeError(absl::StrCat("dimension ", d, ": ", dimension.start, ":", dimension.stop,
                                                " is not within 0:", size));
    }
    if (kept) out.shape.push_back((dimension.stop - dimension.start + dimension.step - 1) / dimension.step);
    out.dimensions.push_back(dimension);
  }
  return out;
}

}  // namespace sherd::cli
