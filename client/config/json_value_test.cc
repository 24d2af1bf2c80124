#include "client/config/json_value.h"

#include <string>

#include "gtest/gtest.h"

namespace sherd::config {
namespace {

std::string ErrorOf(absl::string_view text) {
  const auto parsed = ParseJsonDocument(text);
  EXPECT_FALSE(parsed.ok()) << text;
  EXPECT_EQ(parsed.status().message().find('\n'), absl::string_view::npos) << parsed.status();
  return std::string(parsed.status().message());
}

TEST(JsonValue, Tree) {
  const auto root = ParseJsonDocument(R"( {"a": {"b": [1, 2.5, -3e2]}, "t": true, "n": null, "s": "x\"y"} )");
  ASSERT_TRUE(root.ok()) << root.status();
  const JsonValue& list = *root->Find("a")->Find("b");
  ASSERT_EQ(list.list.size(), 3u);
  EXPECT_EQ(list.list[0].number, 1);
  EXPECT_EQ(list.list[1].number, 2.5);
  EXPECT_EQ(list.list[2].number, -300);
  EXPECT_TRUE(root->Find("t")->boolean);
  EXPECT_EQ(root->Find("n")->kind, JsonValue::Kind::kNull);
  EXPECT_EQ(root->Find("s")->text, "x\"y");
  EXPECT_EQ(root->Find("none"), nullptr);
  EXPECT_EQ(root->members[0].first, "a");
}

TEST(JsonValue, CommentsArePassedOver) {
  const auto root =
      ParseJsonDocument("// first\n{\"a\": 1, # one\n /* two\n lines */ \"b\": \"// no # comment\"}\n# end");
  ASSERT_TRUE(root.ok()) << root.status();
  EXPECT_EQ(root->Find("b")->text, "// no # comment");
}

TEST(JsonValue, ErrorsSayWhereAndWhatToDo) {
  EXPECT_NE(ErrorOf("{\n\"a\": NaN}").find("line 2: NaN"), std::string::npos);
  EXPECT_NE(ErrorOf("{\"a\": -Infinity}").find("Infinity"), std::string::npos);
  EXPECT_NE(ErrorOf("{\"a\": True}").find("True"), std::string::npos);
  EXPECT_NE(ErrorOf("{'a': 1}").find("double quotes"), std::string::npos);
  EXPECT_NE(ErrorOf("{\"a\": 1,\n}").find("line 1: a comma before }"), std::string::npos);
  EXPECT_NE(ErrorOf("{\"a\": 1, \"a\": 2}").find("duplicate key \"a\""), std::string::npos);
  EXPECT_NE(ErrorOf("{\"x\": {\"a\": 1, \"a\": 2}}").find("inside \"x\""), std::string::npos);
  EXPECT_NE(ErrorOf("{\"a\": 1e999}").find("1e999"), std::string::npos);
  EXPECT_NE(ErrorOf("/* {").find("does not end"), std::string::npos);
  for (const char* wrong : {"", "  \n", "[1]", "{\"a\"", "{\"a\": }", "{} {}", "\xEF\xBB\xBF{}",
                            "{\"a\": \"\xff\"}", "{\"a\": \"b", "{\"a\\"}) {
    ErrorOf(wrong);
  }
  ErrorOf(std::string(kMaxDocumentBytes + 1, ' '));
  ErrorOf("{\"a\":" + std::string(100000, '['));
}

// Whatever is cut off or replaced: an error or a tree, never more.
TEST(JsonValue, DamagedDocuments) {
  const std::string whole = R"({"a": {"b": [1, 2e3, true], "c": "x\u00e9"}, /* d */ "e": null})";
  for (size_t n = 0; n <= whole.size(); ++n) {
    for (const char c : std::string("\"\\{}[],:/*#x0\n\0", 15)) {
      std::string damaged = whole;
      if (n < whole.size()) damaged[n] = c;
      ParseJsonDocument(damaged).status().IgnoreError();
      ParseJsonDocument(damaged.substr(0, n)).status().IgnoreError();
    }
  }
}

}  // namespace
}  // namespace sherd::config
