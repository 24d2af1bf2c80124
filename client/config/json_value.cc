#include "client/config/json_value.h"

#include <cctype>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "runtime/formats/strict_json.h"

namespace sherd::config {
namespace {

// Replaces comments by spaces, and names words that are no JSON with their line.
class Cleaner {
 public:
  explicit Cleaner(absl::string_view text) : text_(text) {}

  absl::Status Run() {
    while (at_ < text_.size() && status_.ok()) {
      const char c = text_[at_];
      if (c == '"') {
        String();
      } else if (c == '#' || Starts("//")) {
        Blank(text_.find('\n', at_));
      } else if (Starts("/*")) {
        const size_t end = text_.find("*/", at_ + 2);
        if (end == text_.npos) return Wrong("a comment that begins with /* and does not end");
        Blank(end + 2);
      } else if (std::isalpha(static_cast<unsigned char>(c)) && !InNumber()) {
        Word();
      } else if (c == '\'') {
        return Wrong("a single quote: names and texts stand in double quotes");
      } else if (c == ',') {
        Comma();
      } else {
        Keep(at_ + 1);
      }
    }
    return status_;
  }
  std::string TakeText() { return std::move(out_); }

 private:
  bool Starts(absl::string_view what) const { return text_.substr(at_, what.size()) == what; }
  // The 'e' of 5e8.
  bool InNumber() const { return at_ > 0 && std::isdigit(static_cast<unsigned char>(text_[at_ - 1])); }

  void Keep(size_t end) {
    for (; at_ < end; ++at_) {
      out_ += text_[at_];
      line_ += text_[at_] == '\n';
    }
  }
  void Blank(size_t end) {
    for (end = std::min(end, text_.size()); at_ < end; ++at_) {
      out_ += text_[at_] == '\n' ? '\n' : ' ';
      line_ += text_[at_] == '\n';
    }
  }
  void String() {
    size_t end = at_ + 1;
    while (end < text_.size() && text_[end] != '"' && text_[end] != '\n') end += text_[end] == '\\' ? 2 : 1;
    Keep(std::min(end + 1, text_.size()));
  }
  void Word() {
    size_t end = at_;
    while (end < text_.size() && std::isalnum(static_cast<unsigned char>(text_[end]))) ++end;
    const absl::string_view word = text_.substr(at_, end - at_);
    if (word != "true" && word != "false" && word != "null") {
      status_ = Wrong(absl::StrCat(word.substr(0, 40),
                                   " is no JSON: numbers are finite, the words are true, false and null, and "
                                   "text stands in double quotes"));
    }
    Keep(end);
  }
  void Comma() {
    size_t next = text_.find_first_not_of(" \t\r\n", at_ + 1);
    if (next != text_.npos && (text_[next] == '}' || text_[next] == ']')) {
      status_ = Wrong(absl::StrCat("a comma before ", text_.substr(next, 1), ": remove it"));
    }
    Keep(at_ + 1);
  }
  absl::Status Wrong(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("line ", line_, ": ", what));
  }

  const absl::string_view text_;
  std::string out_;
  size_t at_ = 0;
  int line_ = 1;
  absl::Status status_;
};

class TreeBuilder : public formats::JsonVisitor {
 public:
  absl::Status StartObject() override { return Open(JsonValue::Kind::kObject); }
  absl::Status StartArray() override { return Open(JsonValue::Kind::kList); }
  absl::Status EndObject() override { return Close(); }
  absl::Status EndArray() override { return Close(); }
  absl::Status Key(absl::string_view key) override {
    key_ = std::string(key);
    return absl::OkStatus();
  }
  absl::Status Scalar(const formats::JsonScalar& s) override {
    JsonValue value;
    value.text = std::string(s.text);
    switch (s.kind) {
      case formats::JsonScalar::Kind::kNull:
        break;
      case formats::JsonScalar::Kind::kBool:
        value.kind = JsonValue::Kind::kBool;
        value.boolean = s.text == "true";
        break;
      case formats::JsonScalar::Kind::kUnsigned:
      case formats::JsonScalar::Kind::kNumber:
        value.kind = JsonValue::Kind::kNumber;
        if (!absl::SimpleAtod(s.text, &value.number) || !std::isfinite(value.number)) {
          return absl::InvalidArgumentError(
              absl::StrCat(formats::Quoted(key_), " is ", s.Show(), ", which is too large for a number"));
        }
        break;
      case formats::JsonScalar::Kind::kString:
        value.kind = JsonValue::Kind::kString;
        break;
    }
    Add(std::move(value));
    return absl::OkStatus();
  }

  JsonValue TakeRoot() { return std::move(root_); }

 private:
  absl::Status Open(JsonValue::Kind kind) {
    JsonValue value;
    value.kind = kind;
    open_.emplace_back(key_, std::move(value));
    return absl::OkStatus();
  }
  absl::Status Close() {
    JsonValue value = std::move(open_.back().second);
    key_ = std::move(open_.back().first);
    open_.pop_back();
    Add(std::move(value));
    return absl::OkStatus();
  }
  void Add(JsonValue value) {
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (open_.back().second.kind == JsonValue::Kind::kList) {
      open_.back().second.list.push_back(std::move(value));
    } else {
      open_.back().second.members.emplace_back(key_, std::move(value));
    }
  }

  std::string key_;  // of the value to come
  std::vector<std::pair<std::string, JsonValue>> open_;
  JsonValue root_;
};

}  // namespace

const JsonValue* JsonValue::Find(absl::string_view name) const {
  for (const auto& [key, value] : members) {
    if (key == name) return &value;
  }
  return nullptr;
}

std::string JsonValue::Show() const {
  switch (kind) {
    case Kind::kNull:
      return "null";
    case Kind::kBool:
      return boolean ? "true" : "false";
    case Kind::kNumber:
      return text.substr(0, 40);
    case Kind::kString:
      return formats::Quoted(text);
    case Kind::kList:
      return "a list";
    case Kind::kObject:
      return "an object";
  }
  return "";
}

absl::StatusOr<JsonValue> ParseJsonDocument(absl::string_view text) {
  if (static_cast<int64_t>(text.size()) > kMaxDocumentBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(text.size(), " bytes long: a configuration has at most ", kMaxDocumentBytes));
  }
  Cleaner cleaner(text);
  if (absl::Status clean = cleaner.Run(); !clean.ok()) return clean;
  std::string cleaned = cleaner.TakeText();
  const size_t begin = cleaned.find_first_not_of(" \t\r\n");
  if (begin == cleaned.npos) return absl::InvalidArgumentError("empty: write at least {}");
  TreeBuilder builder;
  absl::Status parsed = formats::ParseStrictJson(absl::string_view(cleaned).substr(begin), &builder);
  if (!parsed.ok()) return parsed;
  return builder.TakeRoot();
}

}  // namespace sherd::config
