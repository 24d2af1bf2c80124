#include "runtime/formats/strict_json.h"

#include <gtest/gtest.h>

#include <string>

namespace sherd::formats {
namespace {

// Writes the events down, so that a test can compare them at a glance.
class Recorder : public JsonVisitor {
 public:
  absl::Status StartObject() override { return Add("{"); }
  absl::Status EndObject() override { return Add("}"); }
  absl::Status StartArray() override { return Add("["); }
  absl::Status EndArray() override { return Add("]"); }
  absl::Status Key(absl::string_view key) override { return Add(std::string(key) + ":"); }
  absl::Status Scalar(const JsonScalar& value) override {
    const char* const kinds = "zbuns";
    return Add(std::string(1, kinds[static_cast<int>(value.kind)]) + value.Show() + " ");
  }
  std::string events;

 private:
  absl::Status Add(const std::string& event) {
    events += event;
    return event == "stop:" ? absl::CancelledError("stopped") : absl::OkStatus();
  }
};

TEST(StrictJson, HandsOverEventsWithNumbersTold) {
  Recorder recorder;
  const absl::Status status = ParseStrictJson(
      "{\"a\":[1,-1,-0,1.5,1e3,18446744073709551615,18446744073709551616],\"b\":{\"a\":null,\"c\":true},"
      "\"d\":\"\\u00e9\\n\"} \n",
      &recorder);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(recorder.events,
            "{a:[u1 n-1 n-0 n1.5 n1e3 u18446744073709551615 n18446744073709551616 ]b:{a:znull c:btrue }"
            "d:s\"\xC3\xA9\\n\" }");
}

TEST(StrictJson, TheVisitorsErrorIsTheResult) {
  Recorder recorder;
  EXPECT_EQ(ParseStrictJson("{\"stop\":1}", &recorder).message(), "stopped");
}

TEST(StrictJson, RefusesWhatIsNotOneObject) {
  struct Case {
    std::string text, error;
  };
  const Case cases[] = {
      {"", "begin with '{', not with nothing"},
      {" {}", "begin with '{', not with \" \""},
      {"[]", "begin with '{'"},
      {"\xEF\xBB\xBF{}", "byte-order mark"},
      {"{", "not valid JSON at byte 2"},
      {"{}x", "expected end of input"},
      {"{}{}", "expected end of input"},
      {std::string("{}\0{}", 5), "NUL byte in JSON at byte 2"},
      {std::string("{\"a\0\":1}", 8), "NUL byte"},
      {"{\"a\":1,}", "not valid JSON"},
      {"{'a':1}", "not valid JSON"},
      {"{/**/}", "not valid JSON"},
      {"{\"a\":01}", "not valid JSON"},
      {"{\"a\":NaN}", "not valid JSON"},
      {"{\"a\":1e999}", "not valid JSON"},
      {"{\"\xFF\":1}", "ill-formed UTF-8"},
      {"{\"\xC0\xAF\":1}", "ill-formed UTF-8"},
      {"{\"\xED\xA0\x80\":1}", "ill-formed UTF-8"},
      {"{\"\\ud800\":1}", "surrogate"},
      {"{\"a\":1,\"a\":2}", "duplicate key \"a\""},
      {"{\"a\":1,\"\\u0061\":2}", "duplicate key \"a\""},
      {"{\"x\":{\"a\":1,\"a\":2}}", "duplicate key \"a\" inside \"x\""},
      {"{\"x\":[{\"a\":1},{\"a\":1,\"a\":2}]}", "duplicate key \"a\""},
  };
  for (const Case& c : cases) {
    Recorder recorder;
    const absl::Status status = ParseStrictJson(c.text, &recorder);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_NE(std::string(status.message()).find(c.error), std::string::npos) << c.text << " -> " << status;
    EXPECT_EQ(status.message().find('\n'), absl::string_view::npos) << status;
  }
}

TEST(StrictJson, NestingEndsBeforeTheStackDoes) {
  const std::string inner(127, '['), outer(127, ']');
  Recorder recorder;
  EXPECT_TRUE(ParseStrictJson("{\"a\":" + inner + outer + "}", &recorder).ok());
  EXPECT_EQ(ParseStrictJson("{\"a\":[" + inner + outer + "]}", &recorder).message(),
            "JSON nested more than 128 levels deep");
  EXPECT_FALSE(ParseStrictJson("{\"a\":" + std::string(1'000'000, '['), &recorder).ok());
}

TEST(StrictJson, WritesStringsThatReadBack) {
  std::string out;
  const std::string text = "a\"\\\n\x01\xC3\xA9/";
  ASSERT_TRUE(AppendJsonString(text, &out).ok());
  EXPECT_EQ(out, "\"a\\\"\\\\\\n\\u0001\xC3\xA9/\"");
  const absl::Status status = AppendJsonString("caf\xE9", &out);
  EXPECT_EQ(status.message(), "not UTF-8: \"caf\\xe9\"");
}

TEST(StrictJson, QuotedStaysShortAndWhole) {
  EXPECT_EQ(Quoted("a\nb"), "\"a\\nb\"");
  // 99 letters and a two-byte character across the limit: cut before it.
  EXPECT_EQ(Quoted(std::string(99, 'x') + "\xC3\xA9y"), "\"" + std::string(99, 'x') + "...\"");
}

}  // namespace
}  // namespace sherd::formats
