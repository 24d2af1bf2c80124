// A JSON document that a person wrote, as a tree: small, with errors for whoever has to mend it.
//
//   absl::StatusOr<JsonValue> root = ParseJsonDocument(text);
//   if (const JsonValue* v = root->Find("zero_optimization")) v->Show();
//
// Comments (`//`, `#`, `/* */`) are passed over, as the readers of such files elsewhere do. Everything else
// is as strict as runtime/formats/strict_json.h: one object, unique keys at every level, no NaN.
#ifndef SHERD_CLIENT_CONFIG_JSON_VALUE_H_
#define SHERD_CLIENT_CONFIG_JSON_VALUE_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sherd::config {

struct JsonValue {
  enum class Kind { kNull, kBool, kNumber, kString, kList, kObject };
  Kind kind = Kind::kNull;
  bool boolean = false;
  double number = 0;  // nearest double; counts up to 2^53 are exact
  std::string text;   // kString: the text. kNumber: as it was written
  std::vector<JsonValue> list;
  std::vector<std::pair<std::string, JsonValue>> members;  // in order, names unique

  // Of an object; nullptr if there is no such member or this is none.
  const JsonValue* Find(absl::string_view name) const;
  // "true", "5e8", "\"auto\"", "a list", "an object": on one line, for messages.
  std::string Show() const;
};

// Longest document read: more is no configuration.
inline constexpr int64_t kMaxDocumentBytes = int64_t{1} << 20;

// INVALID_ARGUMENT in one line: what is wrong, where (line or byte), what to write instead.
absl::StatusOr<JsonValue> ParseJsonDocument(absl::string_view text);

}  // namespace sherd::config

#endif  // SHERD_CLIENT_CONFIG_JSON_VALUE_H_
