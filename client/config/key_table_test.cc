#include "client/config/key_table.h"

#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace sherd::config {
namespace {

TEST(KeyTable, EveryRowIsWholeAndStandsInAnObject) {
  std::set<absl::string_view> paths;
  for (const KeySpec* key : AllKeys()) {
    EXPECT_TRUE(paths.insert(key->path).second) << key->path << " stands twice";
    EXPECT_EQ(FindKey(key->path), key);
    EXPECT_LE(key->low, key->high) << key->path;
    EXPECT_EQ(key->does.empty(), key->effect == Effect::kSection) << key->path;
    EXPECT_EQ(key->type == KeyType::kChoice, !key->choices.empty()) << key->path;
    EXPECT_EQ(key->does.find('|'), absl::string_view::npos) << key->path << ": it is a column of a table";
    const size_t dot = key->path.rfind('.');
    if (dot == key->path.npos) continue;
    const KeySpec* parent = FindKey(key->path.substr(0, dot));
    ASSERT_NE(parent, nullptr) << key->path;
    EXPECT_EQ(parent->type, KeyType::kObject) << key->path;
  }
  EXPECT_GT(paths.size(), 200u);
}

TEST(KeyTable, DefaultsFitTheirKeysAndAskForNothing) {
  for (const KeySpec* key : AllKeys()) {
    if (key->default_value.empty() || key->default_value == "2^63-1") continue;
    const bool text = key->type == KeyType::kChoice || key->type == KeyType::kText;
    const std::string quote = text && key->default_value != "null" ? "\"" : "";
    const auto parsed = ParseJsonDocument(absl::StrCat("{\"d\": ", quote, key->default_value, quote, "}"));
    ASSERT_TRUE(parsed.ok()) << key->path << ": " << parsed.status();
    EXPECT_TRUE(CheckValue(*key, *parsed->Find("d")).ok()) << CheckValue(*key, *parsed->Find("d"));
    EXPECT_TRUE(key->effect != Effect::kRefused || IsQuiet(*key, *parsed->Find("d"))) << key->path;
  }
}

TEST(KeyTable, UnknownKeysNameTheNearest) {
  const auto nearest = [](absl::string_view path) { return std::string(UnknownKey(path).message()); };
  EXPECT_EQ(nearest("zero_optimisation"),
            "\"zero_optimisation\" is not a known key; did you mean \"zero_optimization\"?");
  EXPECT_NE(nearest("zero_optimization.stag").find("\"zero_optimization.stage\""), std::string::npos);
  EXPECT_NE(nearest("fp16.loss_scale_windows").find("\"fp16.loss_scale_window\""), std::string::npos);
  EXPECT_NE(nearest("optimizer.params.learning_rate").find("is not a known key"), std::string::npos);
  // At the wrong level.
  EXPECT_NE(nearest("reduce_bucket_size").find("\"zero_optimization.reduce_bucket_size\""),
            std::string::npos);
  EXPECT_NE(nearest("zero_optimization.gradient_clipping").find("\"gradient_clipping\""), std::string::npos);
  EXPECT_EQ(nearest("quite_something_else"),
            "\"quite_something_else\" is not a known key; remove it, or see client/config/README.md for "
            "those known");
  EXPECT_LT(nearest(std::string(100000, 'x')).size(), 400u);
}

TEST(KeyTable, ValuesAreCheckedByTypeAndRange) {
  const auto check = [](absl::string_view path, const std::string& value) {
    const auto root = ParseJsonDocument(absl::StrCat("{\"v\": ", value, "}"));
    EXPECT_TRUE(root.ok()) << root.status();
    return std::string(CheckValue(*FindKey(path), *root->Find("v")).message());
  };
  for (const char* right : {"0", "3", "2.0", "2e0", "\"auto\"", "null"}) {
    EXPECT_EQ(check("zero_optimization.stage", right), "") << right;
  }
  EXPECT_EQ(check("zero_optimization.stage", "5"),
            "zero_optimization.stage is 5: it must be an integer in 0..3");
  EXPECT_EQ(check("zero_optimization.stage", "\"2\""),
            "zero_optimization.stage is \"2\": it must be an integer in 0..3, without quotes, or \"auto\"");
  EXPECT_NE(check("zero_optimization.stage", "1.5"), "");
  EXPECT_NE(check("zero_optimization.stage", "true"), "");
  EXPECT_NE(check("zero_optimization.stage", "-1"), "");
  EXPECT_EQ(check("zero_optimization", "true"), "zero_optimization is true: write {\"stage\": 1}");
  EXPECT_NE(check("zero_optimization", "\"auto\""), "");
  EXPECT_EQ(check("train_batch_size", "4611686018427387904"),
            "train_batch_size is 4611686018427387904: it must be an integer of at least 1, at most "
            "9007199254740992");
  EXPECT_EQ(check("optimizer.params.betas", "[0.9, 1.5]"),
            "optimizer.params.betas is a list with 1.5: it must be a list of numbers in 0..1");
  EXPECT_EQ(check("zero_optimization.reduce_bucket_size", "5e8"), "");
  EXPECT_NE(check("fp16.min_loss_scale", "0"), "");
  EXPECT_EQ(check("optimizer.type", "\"adamw\""), "");
  EXPECT_NE(check("optimizer.type", "\"adamx\"").find("one of Adam, AdamW"), std::string::npos);
  EXPECT_EQ(check("optimizer.params.betas", "[0.9, 0.95]"), "");
  EXPECT_NE(check("optimizer.params.betas", "[0.9, \"x\"]"), "");
  EXPECT_NE(check("optimizer.params.betas", "[0.9, 1.5]"), "");
  EXPECT_NE(check("gradient_clipping", "-0.5"), "");
}

TEST(KeyTable, TheDocumentedTableIsThisOne) {
  std::stringstream text;
  text << std::ifstream("client/config/README.md").rdbuf();
  ASSERT_FALSE(text.str().empty());
  EXPECT_NE(text.str().find(TableAsMarkdown()), std::string::npos)
      << "README.md is older than the table: bazel run //client/config:key_table_doc";
}

}  // namespace
}  // namespace sherd::config
