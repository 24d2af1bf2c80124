// JSON from strangers, as events: one pass, no tree, errors instead of guesses.
//
//   class Names : public JsonVisitor { ... };
//   Names names;
//   absl::Status status = ParseStrictJson(text, &names);
//
// Stricter than the library underneath: the text must be one object from its first byte, keys must be unique
// in their object at any depth, nesting ends at 128 levels, and a byte-order mark or a NUL byte is an error
// (the library would skip the one and stop quietly at the other).
#ifndef SHERD_RUNTIME_FORMATS_STRICT_JSON_H_
#define SHERD_RUNTIME_FORMATS_STRICT_JSON_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace sherd::formats {

// A value that is neither an object nor an array. The text lives as long as the call that hands it over.
struct JsonScalar {
  enum class Kind {
    kNull,
    kBool,
    kUnsigned,  // an integer of at most 64 bits, written without sign, fraction and exponent
    kNumber,    // any other number: negative (also -0), fractional, with exponent, or too large
    kString,
  };
  Kind kind = Kind::kNull;
  uint64_t number = 0;     // kUnsigned
  absl::string_view text;  // kString: the decoded text; else as it should be shown

  // For error messages: on one line, shortened.
  std::string Show() const;
};

// Receives the events of one document in order. An error from any method ends the parse and is its result.
// Duplicate keys and bad nesting never reach a visitor.
class JsonVisitor {
 public:
  virtual ~JsonVisitor() = default;
  virtual absl::Status StartObject() = 0;
  virtual absl::Status EndObject() = 0;
  virtual absl::Status StartArray() = 0;
  virtual absl::Status EndArray() = 0;
  virtual absl::Status Key(absl::string_view key) = 0;
  virtual absl::Status Scalar(const JsonScalar& value) = 0;
};

// Parses `text`, which must hold exactly one object; white space may follow it. INVALID_ARGUMENT with the
// byte offset for text that is not such JSON, else the visitor's first error. Memory: a small multiple of the
// text's size. Thread-safe.
absl::Status ParseStrictJson(absl::string_view text, JsonVisitor* visitor);

// Appends `text` as a JSON string with its quotes. INVALID_ARGUMENT if `text` is not UTF-8.
absl::Status AppendJsonString(absl::string_view text, std::string* out);

// `text` in quotes for an error message: escaped to one line and cut after 100 bytes.
std::string Quoted(absl::string_view text);

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_STRICT_JSON_H_
