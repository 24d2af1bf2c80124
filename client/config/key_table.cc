#include "client/config/key_table.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "client/config/key_rows.h"
#include "runtime/formats/strict_json.h"

namespace sherd::config {
namespace {

absl::string_view ParentOf(absl::string_view path) {
  const size_t dot = path.rfind('.');
  return dot == path.npos ? absl::string_view() : path.substr(0, dot);
}
absl::string_view NameOf(absl::string_view path) { return path.substr(path.rfind('.') + 1); }

// Levenshtein's: insertions, deletions, replacements.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

absl::string_view EffectText(Effect effect) {
  switch (effect) {
    case Effect::kHonoured:
      return "honoured";
    case Effect::kWarned:
      return "warning";
    case Effect::kRefused:
      return "refused";
    case Effect::kSection:
      return "see its section";
  }
  return "";
}

bool InRange(const KeySpec& key, const JsonValue& v, bool integer) {
  if (v.kind != JsonValue::Kind::kNumber) return false;
  if (integer && v.number != std::floor(v.number)) return false;
  return (key.above_low ? v.number > key.low : v.number >= key.low) && v.number <= key.high;
}

bool AllAre(const JsonValue& v, JsonValue::Kind kind) {
  return v.kind == JsonValue::Kind::kList &&
         std::all_of(v.list.begin(), v.list.end(), [kind](const JsonValue& e) { return e.kind == kind; });
}

bool IsAuto(const JsonValue& v) { return v.kind == JsonValue::Kind::kString && v.text == "auto"; }

bool Fits(const KeySpec& key, const JsonValue& v) {
  switch (key.type) {
    case KeyType::kBool:
      return v.kind == JsonValue::Kind::kBool;
    case KeyType::kInteger:
      return InRange(key, v, /*integer=*/true);
    case KeyType::kNumber:
      return InRange(key, v, /*integer=*/false);
    case KeyType::kText:
      return v.kind == JsonValue::Kind::kString;
    case KeyType::kChoice:
      if (v.kind != JsonValue::Kind::kString) return false;
      for (absl::string_view c : absl::StrSplit(key.choices, '|')) {
        if (absl::EqualsIgnoreCase(c, v.text)) return true;
      }
      return false;
    case KeyType::kNumbers:
      return AllAre(v, JsonValue::Kind::kNumber) &&
             std::all_of(v.list.begin(), v.list.end(),
                         [&](const JsonValue& e) { return InRange(key, e, /*integer=*/false); });
    case KeyType::kTexts:
      return AllAre(v, JsonValue::Kind::kString);
    case KeyType::kObject:
      return v.kind == JsonValue::Kind::kObject;
    case KeyType::kFree:
      return true;
  }
  return false;
}

}  // namespace

std::string KeySpec::TypeText() const {
  const auto range = [this] {
    if (high >= kMaxCount) {
      return low < -1e300 ? std::string() : absl::StrCat(above_low ? " above " : " of at least ", low);
    }
    return above_low ? absl::StrCat(" above ", low, ", at most ", high)
                     : absl::StrCat(" in ", low, "..", high);
  };
  switch (type) {
    case KeyType::kBool:
      return "true or false";
    case KeyType::kInteger:
      return absl::StrCat("an integer", range());
    case KeyType::kNumber:
      return absl::StrCat("a number", range());
    case KeyType::kText:
      return "a text";
    case KeyType::kChoice:
      return absl::StrCat("one of ", absl::StrReplaceAll(choices, {{"|", ", "}}));
    case KeyType::kNumbers:
      return absl::StrCat("a list of numbers", range());
    case KeyType::kTexts:
      return "a list of texts";
    case KeyType::kObject:
      return "an object";
    case KeyType::kFree:
      return "anything";
  }
  return "";
}

const std::vector<const KeySpec*>& AllKeys() {
  static const auto* const keys = [] {
    auto* all = new std::vector<const KeySpec*>;
    for (absl::Span<const KeySpec> part : {ZeroKeys(), TrainingKeys(), OtherKeys()}) {
      for (const KeySpec& key : part) all->push_back(&key);
    }
    std::sort(all->begin(), all->end(), [](const KeySpec* a, const KeySpec* b) { return a->path < b->path; });
    return all;
  }();
  return *keys;
}

const KeySpec* FindKey(absl::string_view path) {
  const std::vector<const KeySpec*>& keys = AllKeys();
  const auto it = std::lower_bound(keys.begin(), keys.end(), path,
                                   [](const KeySpec* k, absl::string_view p) { return k->path < p; });
  if (it != keys.end() && (*it)->path == path) return *it;
  const absl::string_view parent = ParentOf(path);
  if (parent.empty()) return nullptr;
  const KeySpec* above = FindKey(parent);
  return above != nullptr && above->type == KeyType::kFree ? above : nullptr;
}

absl::Status UnknownKey(absl::string_view path) {
  const absl::string_view name = NameOf(path).substr(0, 100);
  const KeySpec* nearest = nullptr;
  size_t least = std::max<size_t>(3, name.size() / 3) + 1;
  const auto look = [&](bool here) {
    for (const KeySpec* key : AllKeys()) {
      if ((ParentOf(key->path) == ParentOf(path)) != here) continue;
      const size_t distance = EditDistance(name, NameOf(key->path));
      if (distance < least) least = distance, nearest = key;
    }
  };
  look(/*here=*/true);
  // Elsewhere only what is as good as certain: the name itself, or less than what is near here.
  if (nearest == nullptr || least > 2) {
    least = std::min<size_t>(least, 2);
    look(/*here=*/false);
  }
  std::string text = absl::StrCat(formats::Quoted(path), " is not a known key");
  if (nearest != nullptr) absl::StrAppend(&text, "; did you mean ", formats::Quoted(nearest->path), "?");
  if (nearest == nullptr)
    absl::StrAppend(&text, "; remove it, or see client/config/README.md for those known");
  return absl::InvalidArgumentError(text);
}

absl::Status CheckValue(const KeySpec& key, const JsonValue& value) {
  const bool object = key.type == KeyType::kObject;
  if (!object && (value.kind == JsonValue::Kind::kNull || IsAuto(value))) return absl::OkStatus();
  if (Fits(key, value)) return absl::OkStatus();
  std::string remedy = absl::StrCat("it must be ", key.TypeText());
  const bool number = key.type == KeyType::kInteger || key.type == KeyType::kNumber;
  if (value.kind == JsonValue::Kind::kString && (number || key.type == KeyType::kBool)) {
    absl::StrAppend(&remedy, ", without quotes, or \"auto\"");
  }
  if (key.path == "zero_optimization" && value.kind == JsonValue::Kind::kBool) {
    remedy = absl::StrCat("write {\"stage\": ", value.boolean ? 1 : 0, "}");
  }
  if (number && value.kind == JsonValue::Kind::kNumber && value.number > key.high && key.high >= kMaxCount)
    absl::StrAppend(&remedy, ", at most ", static_cast<int64_t>(kMaxCount));
  std::string shown = value.Show();
  if (key.type == KeyType::kNumbers) {
    for (const JsonValue& e : value.list) {
      if (!InRange(key, e, /*integer=*/false)) shown = absl::StrCat("a list with ", e.Show());
    }
  }
  return absl::InvalidArgumentError(absl::StrCat(key.path, " is ", shown, ": ", remedy));
}

bool IsQuiet(const KeySpec& key, const JsonValue& value) {
  if (value.kind == JsonValue::Kind::kNull || IsAuto(value)) return true;
  if (value.kind == JsonValue::Kind::kObject && value.members.empty()) return true;
  if (value.kind == JsonValue::Kind::kList && value.list.empty()) return true;
  if (key.type == KeyType::kFree) {
    const JsonValue* enabled = value.Find("enabled");
    if (enabled != nullptr && enabled->kind == JsonValue::Kind::kBool && !enabled->boolean) return true;
  }
  if (key.quiet.empty()) return false;
  const std::string text = value.kind == JsonValue::Kind::kString ? value.text : value.Show();
  for (absl::string_view q : absl::StrSplit(key.quiet, '|')) {
    if (absl::EqualsIgnoreCase(q, text)) return true;
  }
  return false;
}

std::string TableAsMarkdown() {
  std::string out = "| key | type | default | | what Sherd does |\n|---|---|---|---|---|\n";
  for (const KeySpec* key : AllKeys()) {
    const bool holds_others = key->type == KeyType::kObject && key->effect == Effect::kHonoured;
    std::string effect(holds_others ? "" : EffectText(key->effect));
    if (!key->quiet.empty() && (key->effect == Effect::kWarned || key->effect == Effect::kRefused)) {
      absl::StrAppend(
          &effect, " unless ",
          absl::StrJoin(absl::StrSplit(key->quiet, '|'), " or ",
                        [](std::string* s, absl::string_view q) { absl::StrAppend(s, "`", q, "`"); }));
    }
    const auto code = [](absl::string_view v) {
      return v.empty() ? std::string() : absl::StrCat("`", v, "`");
    };
    absl::StrAppend(&out, "| `", key->path, "` | ", key->TypeText(), " | ", code(key->default_value), " | ",
                    effect, " | ", key->does, " |\n");
  }
  return out;
}

}  // namespace sherd::config
