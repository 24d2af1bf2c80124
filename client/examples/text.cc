#include "client/examples/text.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/examples/bible_data.h"
#include "runtime/formats/atomic_file.h"

namespace sherd::examples {
namespace {

constexpr int64_t kHeldOutPart = 20;  // one in twenty: 5 %

}  // namespace

absl::StatusOr<Text> Text::Load(const std::string& path) {
  const bool is_default = path.empty();
  absl::StatusOr<std::string> bytes =
      formats::ReadWhole(is_default ? kDefaultTextPath : path, std::numeric_limits<int64_t>::max());
  if (!bytes.ok()) {
    return absl::Status(bytes.status().code(),
                        is_default ? absl::StrCat(bytes.status().message(), ": apt-get install ",
                                                  kDefaultTextPackage, ", or give --text FILE")
                                   : absl::StrCat("the text: ", bytes.status().message(), " (--text)"));
  }
  if (is_default) {
    bytes = DecodeBibleData(*bytes);
    if (!bytes.ok()) {
      return absl::DataLossError(absl::StrCat(kDefaultTextPath, ": ", bytes.status().message(),
                                              "; reinstall ", kDefaultTextPackage, ", or give --text FILE"));
    }
  }
  if (bytes->empty()) return absl::InvalidArgumentError(absl::StrCat("the text ", path, " is empty"));
  return Text(is_default ? kDefaultTextPackage : path, *std::move(bytes));
}

Text::Text(std::string name, std::string bytes)
    : name_(std::move(name)),
      bytes_(std::move(bytes)),
      train_bytes_(bytes_.size() - bytes_.size() / kHeldOutPart),
      crc_(crc32_gzip_refl(0, reinterpret_cast<const unsigned char*>(bytes_.data()), bytes_.size())) {}

absl::Status Text::CheckContext(int64_t context) const {
  const int64_t window = context + 1;
  const int64_t held_out_bytes = bytes_.size() - train_bytes_;
  if (held_out_bytes >= window && train_bytes_ >= window) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the text ", name_, " holds ", bytes_.size(), " bytes, but --context ", context,
                   " needs at least ", kHeldOutPart * window,
                   " (so that the held-out 5 % hold one window): give a longer text or a smaller --context"));
}

std::vector<int64_t> Text::HeldOutWindows(int64_t context, int64_t count) const {
  const int64_t held_out_bytes = bytes_.size() - train_bytes_;
  const int64_t windows = std::min(count, held_out_bytes / (context + 1));
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i < windows; ++i) offsets.push_back(held_out_bytes * i / windows);
  return offsets;
}

}  // namespace sherd::examples
