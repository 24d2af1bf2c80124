#include "client/examples/text.h"

#include <errno.h>
#include <isa-l/crc.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/examples/bible_data.h"

namespace sherd::examples {
namespace {

constexpr int64_t kHeldOutPart = 20;  // one in twenty: 5 %

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::unique_ptr<FILE, int (*)(FILE*)> file(fopen(path.c_str(), "rb"),
                                             [](FILE* f) { return f ? fclose(f) : 0; });
  if (file == nullptr) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open the text ", path));
  std::string bytes;
  char buffer[1 << 16];
  while (size_t n = fread(buffer, 1, sizeof buffer, file.get())) bytes.append(buffer, n);
  if (ferror(file.get())) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read the text ", path));
  return bytes;
}

}  // namespace

absl::StatusOr<Text> Text::Load(const std::string& path) {
  const bool is_default = path.empty();
  absl::StatusOr<std::string> bytes = ReadFile(is_default ? kDefaultTextPath : path);
  if (!bytes.ok()) {
    return absl::Status(bytes.status().code(),
                        is_default
                            ? absl::StrCat(bytes.status().message(), ": apt-get install ",
                                           kDefaultTextPackage, ", or give --text FILE")
                            : absl::StrCat(bytes.status().message(), ": give a readable file to --text"));
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
