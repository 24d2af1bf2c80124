#include "client/cli/text.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"

namespace sherd::cli {

std::string HumanBytes(uint64_t bytes) {
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  static constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = bytes / 1024.0;
  int unit = 0;
  for (; value >= 1023.95 && unit < 5; ++unit) value /= 1024;
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

absl::StatusOr<uint64_t> ParseBytes(absl::string_view text) {
  const auto error = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is no number of bytes; write it like 1048576, 64K, 1.5M or 2G"));
  };
  const std::string upper = absl::AsciiStrToUpper(text);
  absl::string_view rest = upper;
  if (!absl::ConsumeSuffix(&rest, "IB")) absl::ConsumeSuffix(&rest, "B");
  double scale = 1;
  for (const char unit : {'K', 'M', 'G', 'T'}) {
    scale *= 1024;
    if (!rest.empty() && rest.back() == unit) {
      rest.remove_suffix(1);
      break;
    }
    if (unit == 'T') scale = 1;
  }
  double value = 0;
  if (rest.empty() || !(absl::ascii_isdigit(rest[0]) || rest[0] == '.') || !absl::SimpleAtod(rest, &value) ||
      !(value * scale < 0x1p63)) {
    return error();
  }
  return static_cast<uint64_t>(value * scale);
}

absl::StatusOr<int64_t> ParseCount(absl::string_view text) {
  const std::string upper = absl::AsciiStrToUpper(text);
  absl::string_view rest = upper;
  double scale = 1;
  for (const char unit : {'K', 'M', 'B', 'T'}) {
    scale *= 1000;
    if (absl::ConsumeSuffix(&rest, std::string(1, unit))) break;
    if (unit == 'T') scale = 1;
  }
  double value = 0;
  const bool number = !rest.empty() && (absl::ascii_isdigit(rest[0]) || rest[0] == '.') &&
                      !absl::ascii_isspace(rest.back()) && absl::SimpleAtod(rest, &value) &&
                      value * scale < 0x1p53;
  // 7.3B is whole, though 7.3 is not exact.
  const double count = std::round(value * scale);
  if (!number || count < 1 || std::abs(value * scale - count) > 1e-6 * count) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is no count; write it like 350M, 7.5B or 123456"));
  }
  return static_cast<int64_t>(count);
}

std::string DecimalBytes(double bytes) {
  static constexpr const char* kUnits[] = {"B", "KB", "MB", "GB", "TB", "PB", "EB"};
  int unit = 0;
  for (; bytes >= 999.95 && unit < 6; ++unit) bytes /= 1000;
  std::string number = absl::StrFormat("%.1f", bytes);
  if (absl::EndsWith(number, ".0")) number.resize(number.size() - 2);
  return absl::StrCat(number, " ", kUnits[unit]);
}

absl::StatusOr<absl::Duration> ParseTimeout(absl::string_view text) {
  double seconds = 0;
  absl::Duration duration;
  const bool plain = absl::SimpleAtod(text, &seconds) && std::isfinite(seconds);
  if (plain) duration = absl::Seconds(seconds);
  if ((!plain && !absl::ParseDuration(std::string(text), &duration)) || duration <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is no time; write it like 30 (seconds), 500ms or 2m"));
  }
  return duration;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return shape.empty() ? "scalar" : absl::StrJoin(shape, "x");
}

std::string Table::ToString() const {
  std::vector<size_t> widths;
  for (const std::vector<std::string>& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const std::vector<std::string>& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i)
      absl::StrAppendFormat(&line, "%-*s  ", static_cast<int>(widths[i]), row[i]);
    absl::StripTrailingAsciiWhitespace(&line);
    absl::StrAppend(&text, line, "\n");
  }
  return text;
}

}  // namespace sherd::cli
