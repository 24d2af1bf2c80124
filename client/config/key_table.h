// Every key of DeepSpeed's configuration that Sherd knows: its type, range, default, and what Sherd does with
// it. The one place where that is said: reading, warnings and the documentation come from here.
//
//   for (const KeySpec* key : AllKeys()) ... key->path ... key->does
//   FindKey("zero_optimization.stage")->effect     // Effect::kHonoured
//   UnknownKey("zero_optimization.stagee")          // "... is not a known key; did you mean ... ?"
//
// A path names the objects on the way, with dots. Immutable; thread-safe.
#ifndef SHERD_CLIENT_CONFIG_KEY_TABLE_H_
#define SHERD_CLIENT_CONFIG_KEY_TABLE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "client/config/json_value.h"

namespace sherd::config {

enum class Effect {
  kHonoured,  // Sherd does it
  kWarned,    // Sherd does something else, which a warning says
  kRefused,   // training as asked is not possible: an error says what to write
  kSection,   // counts only together with another key of its object, which decides
};

enum class KeyType {
  kBool,
  kInteger,  // also written 5e8
  kNumber,
  kText,
  kChoice,   // one of KeySpec::choices, in any case
  kNumbers,  // a list of numbers, each in the range
  kTexts,    // a list of texts
  kObject,   // keys inside are in the table
  kFree,     // whatever stands there is not looked at
};

// A row. Written as `Integer("zero_optimization.stage", 0, 3).Default("0").Honoured("...")`.
struct KeySpec {
  absl::string_view path;
  KeyType type = KeyType::kFree;
  double low = 0, high = 0;         // kInteger, kNumber, kNumbers
  bool above_low = false;           // the range does not hold `low` itself
  absl::string_view choices;        // kChoice: separated by '|'
  absl::string_view default_value;  // as JSON, texts without quotes; empty: none
  Effect effect = Effect::kSection;
  absl::string_view quiet;  // values, separated by '|', with which nothing else is asked for than Sherd does
  absl::string_view does;   // what Sherd does, for people

  constexpr KeySpec Default(absl::string_view v) const { return With(&KeySpec::default_value, v); }
  // With these values there is neither a warning nor a refusal.
  constexpr KeySpec Unless(absl::string_view v) const { return With(&KeySpec::quiet, v); }
  constexpr KeySpec Honoured(absl::string_view v) const { return Does(Effect::kHonoured, v); }
  constexpr KeySpec Warned(absl::string_view v) const { return Does(Effect::kWarned, v); }
  constexpr KeySpec Refused(absl::string_view v) const { return Does(Effect::kRefused, v); }
  constexpr KeySpec Above() const {
    KeySpec k = *this;
    k.above_low = true;
    return k;
  }

  // "integer in 0..3", "one of none, cpu, nvme".
  std::string TypeText() const;

 private:
  constexpr KeySpec With(absl::string_view KeySpec::*field, absl::string_view v) const {
    KeySpec k = *this;
    k.*field = v;
    return k;
  }
  constexpr KeySpec Does(Effect e, absl::string_view v) const {
    KeySpec k = *this;
    k.effect = e;
    k.does = v;
    return k;
  }
};

// Sorted by path.
const std::vector<const KeySpec*>& AllKeys();

// nullptr: unknown. A path whose object is kFree is found as that object.
const KeySpec* FindKey(absl::string_view path);

// INVALID_ARGUMENT: `path` is unknown, with the nearest known key: of the same object by edit distance, or
// that of the same name elsewhere.
absl::Status UnknownKey(absl::string_view path);

// OK, or INVALID_ARGUMENT: the value has another type, or is out of range; says which is asked for. "auto"
// and null are right for every key that is no object.
absl::Status CheckValue(const KeySpec& key, const JsonValue& value);

// Whether `value` asks for nothing but what Sherd does anyhow (KeySpec::quiet, "auto", null, {}; of
// a kFree object also {"enabled": false}).
bool IsQuiet(const KeySpec& key, const JsonValue& value);

// The table as Markdown: the part of README.md between its marks.
std::string TableAsMarkdown();

}  // namespace sherd::config

#endif  // SHERD_CLIENT_CONFIG_KEY_TABLE_H_
