// How the rows of the key table are written: one function for each type, and the rows of each part.
#ifndef SHERD_CLIENT_CONFIG_KEY_ROWS_H_
#define SHERD_CLIENT_CONFIG_KEY_ROWS_H_

#include "absl/types/span.h"
#include "client/config/key_table.h"

namespace sherd::config {

constexpr KeySpec Typed(absl::string_view path, KeyType type) {
  KeySpec k;
  k.path = path;
  k.type = type;
  return k;
}
constexpr KeySpec Ranged(absl::string_view path, KeyType type, double low, double high) {
  KeySpec k = Typed(path, type);
  k.low = low;
  k.high = high;
  return k;
}

// Counts stay exact as doubles up to here.
inline constexpr double kMaxCount = 9007199254740992.0;

constexpr KeySpec Bool(absl::string_view path) { return Typed(path, KeyType::kBool); }
constexpr KeySpec Integer(absl::string_view path, double low, double high = kMaxCount) {
  return Ranged(path, KeyType::kInteger, low, high);
}
constexpr KeySpec Number(absl::string_view path, double low, double high = 1e308) {
  return Ranged(path, KeyType::kNumber, low, high);
}
constexpr KeySpec Numbers(absl::string_view path, double low, double high) {
  return Ranged(path, KeyType::kNumbers, low, high);
}
constexpr KeySpec Text(absl::string_view path) { return Typed(path, KeyType::kText); }
constexpr KeySpec Texts(absl::string_view path) { return Typed(path, KeyType::kTexts); }
constexpr KeySpec Object(absl::string_view path) { return Typed(path, KeyType::kObject); }
constexpr KeySpec Free(absl::string_view path) { return Typed(path, KeyType::kFree); }
constexpr KeySpec Choice(absl::string_view path, absl::string_view choices) {
  KeySpec k = Typed(path, KeyType::kChoice);
  k.choices = choices;
  return k;
}

absl::Span<const KeySpec> ZeroKeys();      // zero_optimization and what belongs to offloading
absl::Span<const KeySpec> TrainingKeys();  // batches, optimizer, scheduler, precision, clipping
absl::Span<const KeySpec> OtherKeys();     // all else

}  // namespace sherd::config

#endif  // SHERD_CLIENT_CONFIG_KEY_ROWS_H_
