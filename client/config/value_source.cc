#include "client/config/value_source.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/config/key_table.h"

namespace sherd::config {
namespace {

// A value that was checked against its key.
void Read(const JsonValue& v, bool* out) { *out = v.boolean; }
void Read(const JsonValue& v, double* out) { *out = v.number; }
void Read(const JsonValue& v, int64_t* out) { *out = static_cast<int64_t>(v.number); }
void Read(const JsonValue& v, std::string* out) { *out = v.text; }
void Read(const JsonValue& v, std::pair<double, double>* out) { *out = {v.list[0].number, v.list[1].number}; }

std::string Show(double v) { return absl::StrCat(v); }
std::string Show(int64_t v) { return absl::StrCat(v); }
std::string Show(bool v) { return v ? "true" : "false"; }
std::string Show(const std::string& v) { return v; }
std::string Show(const std::pair<double, double>& v) {
  return absl::StrCat("[", v.first, ", ", v.second, "]");
}

}  // namespace

void ValueSource::Fail(absl::string_view what) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(name_, ": ", what));
}

const JsonValue* ValueSource::At(absl::string_view path) const {
  const JsonValue* at = &root_;
  for (absl::string_view name : absl::StrSplit(path, '.')) {
    at = at->Find(name);
    if (at == nullptr) return nullptr;
  }
  return at;
}

bool ValueSource::IsSet(absl::string_view path) const {
  const JsonValue* v = At(path);
  return v != nullptr && v->kind != JsonValue::Kind::kNull &&
         !(v->kind == JsonValue::Kind::kString && v->text == "auto");
}

template <typename T>
absl::optional<T> ValueSource::Take(absl::string_view path, const ProgramValue<T>& program) {
  const JsonValue* v = At(path);
  if (IsSet(path)) {
    T value;
    Read(*v, &value);
    if (!program.flag.empty() && program.value.has_value() && *program.value != value) {
      Fail(absl::StrCat(path, " is ", Show(value), ", but ", program.flag, " says ", Show(*program.value),
                        ": remove the flag, or write \"auto\" in the file"));
    }
    return value;
  }
  const bool is_auto = v != nullptr && v->kind == JsonValue::Kind::kString;
  if (program.value.has_value() && (is_auto || !program.flag.empty())) return program.value;
  const KeySpec* key = FindKey(path);
  if (key != nullptr && !key->default_value.empty() && key->default_value != "null") {
    // Made part of a document, as the file's own are.
    absl::StatusOr<JsonValue> parsed = ParseJsonDocument(
        absl::StrCat("{\"d\": ",
                     key->type == KeyType::kChoice ? absl::StrCat("\"", key->default_value, "\"")
                                                   : std::string(key->default_value),
                     "}"));
    if (parsed.ok()) {
      T value;
      Read(*parsed->Find("d"), &value);
      return value;
    }
  }
  return program.value;
}

absl::optional<std::pair<double, double>> ValueSource::Pair(
    absl::string_view path, const ProgramValue<std::pair<double, double>>& program) {
  if (IsSet(path) && At(path)->list.size() != 2) {
    Fail(absl::StrCat(path, " is a list of ", At(path)->list.size(), ": it must have two numbers"));
    return absl::nullopt;
  }
  return Take<std::pair<double, double>>(path, program);
}

template absl::optional<bool> ValueSource::Take(absl::string_view, const ProgramValue<bool>&);
template absl::optional<double> ValueSource::Take(absl::string_view, const ProgramValue<double>&);
template absl::optional<int64_t> ValueSource::Take(absl::string_view, const ProgramValue<int64_t>&);
template absl::optional<std::string> ValueSource::Take(absl::string_view, const ProgramValue<std::string>&);
template absl::optional<std::pair<double, double>> ValueSource::Take(
    absl::string_view, const ProgramValue<std::pair<double, double>>&);

}  // namespace sherd::config
