#include "client/examples/bible_data.h"

#include <algorithm>
#include <array>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace sherd::examples {
namespace {

constexpr absl::string_view kMagic = "EC02";
constexpr int64_t kWindowSizeAt =
    0x54;  // u32 big-endian; then the number of windows; then that many offsets + 1
constexpr int64_t kTableAt = 0x5c;
constexpr int64_t kMaxWindowBytes = int64_t{1} << 20;

constexpr int kMinBits = 9;
constexpr int kMaxBits = 16;
constexpr int kClear = 256;

int64_t BigEndian32(absl::string_view bytes, int64_t at) {
  int64_t value = 0;
  for (int i = 0; i < 4; ++i) value = value << 8 | static_cast<uint8_t>(bytes[at + i]);
  return value;
}

// Codes of a varying number of bits, least significant bit first. compress(1) writes codes in groups of
// eight, and a change of width abandons the rest of the group.
class CodeReader {
 public:
  explicit CodeReader(absl::string_view bytes) : bytes_(bytes) {}

  int bits() const { return bits_; }

  // The next code, or -1 at the end.
  int Next() {
    if (at_ + bits_ > static_cast<int64_t>(bytes_.size()) * 8) return -1;
    uint32_t word = 0;
    for (int64_t i = at_ / 8, shift = 0; i < static_cast<int64_t>(bytes_.size()) && shift < 24;
         ++i, shift += 8) {
      word |= static_cast<uint32_t>(static_cast<uint8_t>(bytes_[i])) << shift;
    }
    const int code = (word >> (at_ % 8)) & ((1u << bits_) - 1);
    at_ += bits_;
    return code;
  }

  void ChangeWidth(int bits) {
    const int64_t group = bits_ * 8;
    group_start_ += (at_ - group_start_ + group - 1) / group * group;
    at_ = group_start_;
    bits_ = bits;
  }

 private:
  absl::string_view bytes_;
  int bits_ = kMinBits;
  int64_t at_ = 0;           // in bits
  int64_t group_start_ = 0;  // in bits
};

}  // namespace

absl::StatusOr<std::string> DecodeLzw(absl::string_view packed, int64_t max_bytes) {
  std::vector<uint16_t> prefix(1 << kMaxBits);
  std::vector<char> suffix(1 << kMaxBits);
  CodeReader codes(packed);
  std::string out, run;
  int free = kClear + 1;  // the next entry of the dictionary
  int previous = -1;
  char first = 0;
  while (true) {
    if (free > (1 << codes.bits()) - 1 && codes.bits() < kMaxBits) codes.ChangeWidth(codes.bits() + 1);
    const int code = codes.Next();
    if (code < 0) return out;
    if (code == kClear) {
      codes.ChangeWidth(kMinBits);
      free = kClear;  // one early: the code after a clear makes no entry, but counts as one
      previous = -1;
      continue;
    }
    // A code may name the very entry it is about to make: the previous run and its own first byte again.
    const bool makes_itself = code == free && previous >= 0;
    if (code > free || (code >= free && !makes_itself) || (previous < 0 && code > kClear)) {
      return absl::DataLossError(
          absl::StrCat("LZW code ", code, " stands before its entry (", free, " are known)"));
    }
    run.clear();
    if (makes_itself) run.push_back(first);
    int walk = makes_itself ? previous : code;
    for (; walk > kClear; walk = prefix[walk]) run.push_back(suffix[walk]);
    first = static_cast<char>(walk);
    run.push_back(first);
    if (static_cast<int64_t>(out.size() + run.size()) > max_bytes) {
      return absl::DataLossError(absl::StrCat("LZW data unpacks to more than ", max_bytes, " bytes"));
    }
    out.append(run.rbegin(), run.rend());
    if (previous >= 0 || free == kClear) {
      if (previous >= 0 && free < 1 << kMaxBits) {
        prefix[free] = static_cast<uint16_t>(previous);
        suffix[free] = first;
      }
      if (free < 1 << kMaxBits) ++free;
    }
    previous = code;
  }
}

absl::StatusOr<std::string> DecodeBibleData(absl::string_view file) {
  if (file.size() < kTableAt || file.substr(0, kMagic.size()) != kMagic) {
    return absl::DataLossError(absl::StrCat("not a bible.data file: it does not begin with ", kMagic));
  }
  const int64_t size = file.size();
  const int64_t window_bytes = BigEndian32(file, kWindowSizeAt);
  const int64_t windows = BigEndian32(file, kWindowSizeAt + 4);
  if (window_bytes < 1 || window_bytes > kMaxWindowBytes || windows < 1 ||
      kTableAt + 4 * (windows + 1) > size) {
    return absl::DataLossError(absl::StrCat("bible.data of ", size, " bytes claims ", windows, " windows of ",
                                            window_bytes, " bytes"));
  }
  std::string text;
  for (int64_t i = 0; i < windows; ++i) {
    const int64_t begin = BigEndian32(file, kTableAt + 4 * i);
    const int64_t end = BigEndian32(file, kTableAt + 4 * (i + 1));
    if (begin > end || end > size) {
      return absl::DataLossError(
          absl::StrCat("bible.data: window ", i, " is at [", begin, ", ", end, ") of ", size, " bytes"));
    }
    absl::StatusOr<std::string> window = DecodeLzw(file.substr(begin, end - begin), window_bytes);
    if (!window.ok()) {
      return absl::DataLossError(absl::StrCat("bible.data: window ", i, ": ", window.status().message()));
    }
    text += *window;
  }
  return text;
}

}  // namespace sherd::examples
