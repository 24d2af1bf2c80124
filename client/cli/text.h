// How values look on a terminal, and how they are written on the command line. Pure; thread-safe.
#ifndef SHERD_CLIENT_CLI_TEXT_H_
#define SHERD_CLIENT_CLI_TEXT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace sherd::cli {

// "1.5 MiB", "312 B".
std::string HumanBytes(uint64_t bytes);

// "1048576", "64K", "1.5M", "2GiB" in bytes; K, M, G, T are powers of 1024. INVALID_ARGUMENT names the text.
absl::StatusOr<uint64_t> ParseBytes(absl::string_view text);

// "7.5B", "350M", "1e9", "123456": a whole number above 0; K, M, B and T are powers of 1000. INVALID_ARGUMENT
// names the text.
absl::StatusOr<int64_t> ParseCount(absl::string_view text);

// "120 GB", "16.6 GB", "3.6 MB": powers of 1000, one digit after the point unless it is 0.
std::string DecimalBytes(double bytes);

// "90", "1.5", "500ms", "2m", "inf": without a unit, seconds; more than zero. INVALID_ARGUMENT names the
// text.
absl::StatusOr<absl::Duration> ParseTimeout(absl::string_view text);

// "2x3x4"; "scalar".
std::string ShapeText(const std::vector<int64_t>& shape);

// Columns as wide as their widest cell, two spaces apart; rows end with '\n' and without spaces.
class Table {
 public:
  explicit Table(std::vector<std::string> head) { Add(std::move(head)); }
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_TEXT_H_
