#include "runtime/formats/strict_json.h"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace sherd::formats {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxDepth = 128;
constexpr size_t kShownBytes = 100;

// At most `limit` bytes of `text`, never half a character.
absl::string_view Shortened(absl::string_view text, size_t limit) {
  if (text.size() <= limit) return text;
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xC0) == 0x80) --limit;
  return text.substr(0, limit);
}

// Adds to the library's events what it leaves out: unique keys, bounded depth.
class Driver : public nlohmann::json_sax<Json> {
 public:
  explicit Driver(JsonVisitor* visitor) : visitor_(visitor) {}

  absl::Status status() && { return std::move(status_); }

  bool null() override { return Scalar(JsonScalar::Kind::kNull, "null"); }
  bool boolean(bool value) override { return Scalar(JsonScalar::Kind::kBool, value ? "true" : "false"); }
  // The library calls this only for numbers that begin with a minus sign.
  bool number_integer(Json::number_integer_t value) override {
    return Scalar(JsonScalar::Kind::kNumber, value == 0 ? "-0" : absl::StrCat(value));
  }
  bool number_unsigned(Json::number_unsigned_t value) override {
    JsonScalar scalar;
    scalar.kind = JsonScalar::Kind::kUnsigned;
    scalar.number = value;
    const std::string text = absl::StrCat(value);
    scalar.text = text;
    return Keep(visitor_->Scalar(scalar));
  }
  // Also integers of more than 64 bits.
  bool number_float(Json::number_float_t, const std::string& text) override {
    return Scalar(JsonScalar::Kind::kNumber, text);
  }
  bool string(std::string& text) override { return Scalar(JsonScalar::Kind::kString, text); }
  bool binary(Json::binary_t&) override { return Scalar(JsonScalar::Kind::kNull, "binary"); }

  bool start_object(size_t) override { return Push() && Keep(visitor_->StartObject()); }
  bool start_array(size_t) override { return Push() && Keep(visitor_->StartArray()); }
  bool end_object() override {
    levels_.pop_back();
    return Keep(visitor_->EndObject());
  }
  bool end_array() override {
    levels_.pop_back();
    return Keep(visitor_->EndArray());
  }
  bool key(std::string& key) override {
    if (!levels_.back().keys.insert(key).second) return Keep(Duplicate(key));
    levels_.back().current = key;
    return Keep(visitor_->Key(key));
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    absl::string_view what = error.what();
    const size_t prefix = what.find(": ");
    if (prefix != what.npos) what.remove_prefix(prefix + 2);
    return Keep(absl::InvalidArgumentError(absl::StrCat(
        "not valid JSON at byte ", position, ": ", absl::Utf8SafeCEscape(Shortened(what, 2 * kShownBytes)))));
  }

 private:
  struct Level {
    absl::flat_hash_set<std::string> keys;
    std::string current;
  };

  absl::Status Duplicate(absl::string_view key) const {
    if (levels_.size() < 2) return absl::InvalidArgumentError(absl::StrCat("duplicate key ", Quoted(key)));
    return absl::InvalidArgumentError(
        absl::StrCat("duplicate key ", Quoted(key), " inside ", Quoted(levels_[levels_.size() - 2].current)));
  }

  bool Scalar(JsonScalar::Kind kind, absl::string_view text) {
    JsonScalar scalar;
    scalar.kind = kind;
    scalar.text = text;
    return Keep(visitor_->Scalar(scalar));
  }

  bool Push() {
    if (levels_.size() >= kMaxDepth) {
      return Keep(
          absl::InvalidArgumentError(absl::StrCat("JSON nested more than ", kMaxDepth, " levels deep")));
    }
    levels_.emplace_back();
    return true;
  }

  bool Keep(absl::Status status) {
    status_ = std::move(status);
    return status_.ok();
  }

  JsonVisitor* const visitor_;
  std::vector<Level> levels_;
  absl::Status status_;
};

}  // namespace

std::string JsonScalar::Show() const {
  return kind == Kind::kString
             ? Quoted(text)
             : std::string(Shortened(text, kShownBytes)) + (text.size() > kShownBytes ? "..." : "");
}

absl::Status ParseStrictJson(absl::string_view text, JsonVisitor* visitor) {
  if (absl::StartsWith(text, "\xEF\xBB\xBF")) {
    return absl::InvalidArgumentError("JSON begins with a byte-order mark: write it as UTF-8 without one");
  }
  if (text.empty() || text[0] != '{') {
    return absl::InvalidArgumentError(absl::StrCat("JSON must begin with '{', not with ",
                                                   text.empty() ? "nothing" : Quoted(text.substr(0, 1))));
  }
  const size_t nul = text.find('\0');
  if (nul != text.npos) {
    return absl::InvalidArgumentError(absl::StrCat("NUL byte in JSON at byte ", nul));
  }
  Driver driver(visitor);
  Json::sax_parse(text.data(), text.data() + text.size(), &driver);
  return std::move(driver).status();
}

absl::Status AppendJsonString(absl::string_view text, std::string* out) {
  try {
    out->append(Json(std::string(text)).dump());
  } catch (const Json::type_error&) {
    return absl::InvalidArgumentError(
        absl::StrCat("not UTF-8: \"", absl::CHexEscape(text.substr(0, kShownBytes)), "\""));
  }
  return absl::OkStatus();
}

std::string Quoted(absl::string_view text) {
  return absl::StrCat("\"", absl::Utf8SafeCEscape(Shortened(text, kShownBytes)),
                      text.size() > kShownBytes ? "...\"" : "\"");
}

}  // namespace sherd::formats
