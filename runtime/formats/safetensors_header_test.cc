#include "runtime/formats/safetensors_header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace sherd::formats {
namespace {

using ::testing::HasSubstr;

std::string Prefix(uint64_t n) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(n >> (8 * i) & 0xFF);
  return bytes;
}

std::string Tensor(absl::string_view name, absl::string_view dtype, absl::string_view shape,
                   absl::string_view offsets) {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape,
                      ",\"data_offsets\":", offsets, "}");
}

absl::StatusOr<Header> ParseWithData(const std::string& json, uint64_t data_bytes) {
  return Parse(json, kPrefixBytes + json.size() + data_bytes);
}

struct Malformed {
  std::string json;
  uint64_t data_bytes;
  std::string error;
};

void ExpectRefused(const Malformed& c) {
  const absl::StatusOr<Header> header = ParseWithData(c.json, c.data_bytes);
  ASSERT_FALSE(header.ok()) << c.json;
  EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument) << c.json;
  EXPECT_THAT(std::string(header.status().message()), HasSubstr(c.error)) << c.json;
  EXPECT_EQ(header.status().message().find('\n'), absl::string_view::npos) << header.status();
  EXPECT_LT(header.status().message().size(), 500u) << header.status();
}

TEST(SafetensorsHeader, PrefixIsCheckedBeforeAnythingIsAllocated) {
  struct Case {
    std::string prefix;
    uint64_t file_bytes;
    std::string error;
  };
  const Case cases[] = {
      {"", 0, "only 0 bytes"},
      {"1234567", 7, "only 7 bytes"},
      {Prefix(0), 8, "header size is 0"},
      {Prefix(0), 100, "header size is 0"},
      {Prefix(2), 9, "header size 2 reaches past the end of the file of 9 bytes"},
      {Prefix(100'000'001), uint64_t{1} << 40, "header size 100000001 is over the format's limit"},
      {Prefix(~uint64_t{0}), 100, "header size 18446744073709551615 is over"},
      {Prefix(uint64_t{1} << 63), 100, "is over the format's limit"},
  };
  for (const Case& c : cases) {
    const absl::StatusOr<uint64_t> size = ParseHeaderSize(c.prefix, c.file_bytes);
    ASSERT_FALSE(size.ok()) << c.error;
    EXPECT_THAT(std::string(size.status().message()), HasSubstr(c.error));
  }
  EXPECT_EQ(*ParseHeaderSize(Prefix(2), 10), 2u);
  EXPECT_EQ(*ParseHeaderSize(Prefix(100'000'000), 100'000'008), 100'000'000u);
  EXPECT_FALSE(ParseHeaderSize(Prefix(100'000'000), 100'000'007).ok());
}

TEST(SafetensorsHeader, RefusesTextThatIsNotOneJsonObject) {
  const std::string good = "{" + Tensor("a", "F32", "[2]", "[0,8]") + "}";
  ASSERT_TRUE(ParseWithData(good, 8).ok());
  const Malformed cases[] = {
      {"\xEF\xBB\xBF" + good, 8, "byte-order mark"},
      {" " + good, 8, "begin with '{'"},
      {"[]", 0, "begin with '{'"},
      {good + "x", 8, "expected end of input"},
      {good + "{}", 8, "expected end of input"},
      {good + std::string(3, '\0'), 8, "NUL byte"},
      {good + std::string(1, '\0') + "{}", 8, "NUL byte"},
      {good.substr(0, good.size() - 1), 8, "not valid JSON"},
      {"{" + Tensor("\xFF", "F32", "[2]", "[0,8]") + "}", 8, "ill-formed UTF-8"},
      {"{\"a\":" + std::string(200, '['), 0, "must be an object, not an array"},
      {"{\"a\":{\"x\":" + std::string(200, '['), 0, "nested more than 128"},
  };
  for (const Malformed& c : cases) ExpectRefused(c);
}

TEST(SafetensorsHeader, RefusesDuplicateKeysAnywhere) {
  const std::string a = Tensor("a", "U8", "[1]", "[0,1]");
  const Malformed cases[] = {
      {"{" + a + "," + a + "}", 1, "duplicate key \"a\""},
      {"{" + a + "," + Tensor("\\u0061", "U8", "[1]", "[1,2]") + "}", 2, "duplicate key \"a\""},
      {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "duplicate key \"__metadata__\""},
      {"{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "duplicate key \"k\" inside \"__metadata__\""},
      {"{\"w\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", 1,
       "duplicate key \"dtype\" inside \"w\""},
      {"{\"w\":{\"dtype\":\"U8\",\"shape\":[],\"shape\":[],\"data_offsets\":[0,1]}}", 1,
       "duplicate key \"shape\""},
      {"{\"w\":{\"x\":{\"y\":1,\"y\":1},\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", 1,
       "duplicate key \"y\""},
  };
  for (const Malformed& c : cases) ExpectRefused(c);
}

TEST(SafetensorsHeader, RefusesEveryIntegerThatIsNotAPlainOne) {
  for (const std::string bad :
       {"-1", "-0", "1.0", "1.5", "1e0", "1E2", "9223372036854775808", "18446744073709551616",
        "99999999999999999999999999", "null", "true", "\"1\""}) {
    const std::string shown = bad;
    ExpectRefused({"{" + Tensor("w", "U8", "[" + bad + "]", "[0,1]") + "}", 1,
                   "tensor \"w\": shape[0] is " + shown + ": must be an integer"});
    ExpectRefused({"{" + Tensor("w", "U8", "[2," + bad + "]", "[0,1]") + "}", 1, "shape[1] is " + shown});
    ExpectRefused({"{" + Tensor("w", "U8", "[1]", "[" + bad + ",1]") + "}", 1,
                   "tensor \"w\": data_offsets[0] is " + shown + ": must be an integer"});
    ExpectRefused(
        {"{" + Tensor("w", "U8", "[1]", "[0," + bad + "]") + "}", 1, "data_offsets[1] is " + shown});
  }
}

TEST(SafetensorsHeader, RefusesMalformedTensors) {
  const Malformed cases[] = {
      {"{\"w\":1}", 0, "tensor \"w\" must be an object, not 1"},
      {"{\"w\":null}", 0, "tensor \"w\" must be an object, not null"},
      {"{\"w\":{}}", 0, "tensor \"w\": dtype is missing"},
      {"{\"w\":{\"dtype\":\"U8\"}}", 0, "tensor \"w\": shape is missing"},
      {"{\"w\":{\"dtype\":\"U8\",\"shape\":[]}}", 1, "tensor \"w\": data_offsets is missing"},
      {"{\"dtype\":{\"shape\":[],\"data_offsets\":[0,1]}}", 1, "tensor \"dtype\": dtype is missing"},
      {"{" + Tensor("w", "F33", "[1]", "[0,4]") + "}", 4,
       "tensor \"w\": unknown dtype \"F33\": must be one of BOOL"},
      {"{" + Tensor("w", "f32", "[1]", "[0,4]") + "}", 4, "unknown dtype \"f32\""},
      {"{" + Tensor("w", "", "[1]", "[0,4]") + "}", 4, "unknown dtype \"\""},
      {"{\"w\":{\"dtype\":7}}", 0, "tensor \"w\": dtype must be a string, not 7"},
      {"{\"w\":{\"dtype\":[]}}", 0, "tensor \"w\": dtype must be a string, not an array"},
      {"{\"w\":{\"shape\":4}}", 0, "tensor \"w\": shape must be an array, not 4"},
      {"{\"w\":{\"shape\":{}}}", 0, "tensor \"w\": shape must be an array, not an object"},
      {"{\"w\":{\"shape\":[[1]]}}", 0, "tensor \"w\": shape must hold integers, not an array"},
      {"{\"w\":{\"shape\":[{}]}}", 0, "tensor \"w\": shape must hold integers, not an object"},
      {"{\"w\":{\"data_offsets\":\"0\"}}", 0, "tensor \"w\": data_offsets must be an array, not \"0\""},
      {"{\"w\":{\"data_offsets\":[[0]]}}", 0, "data_offsets must hold integers, not an array"},
      {"{" + Tensor("w", "U8", "[0]", "[]") + "}", 0, "data_offsets has 0 values instead of 2"},
      {"{" + Tensor("w", "U8", "[0]", "[0]") + "}", 0, "data_offsets has 1 values instead of 2"},
      {"{" + Tensor("w", "U8", "[0]", "[0,0,0]") + "}", 0, "data_offsets has more than 2 values"},
      {"{" + Tensor("w", "U8", "[1]", "[1,0]") + "}", 1, "data_offsets begin at 1 after their end 0"},
      {"{" + Tensor("w", "F32", "[3]", "[0,8]") + "}", 8,
       "data_offsets [0,8] hold 8 bytes, but F32 [3] takes 12"},
      {"{" + Tensor("w", "F32", "[]", "[0,8]") + "}", 8, "but F32 [] takes 4"},
      {"{" + Tensor("w", "F32", "[0,7]", "[0,4]") + "}", 4, "but F32 [0,7] takes 0"},
      {"{" + Tensor("w", "U8", "[4294967296,4294967296]", "[0,0]") + "}", 0, "takes more than 2^63-1 bytes"},
      {"{" + Tensor("w", "F32", "[4611686018427387904]", "[0,0]") + "}", 0, "takes more than 2^63-1 bytes"},
      {"{" + Tensor("w", "F64", "[2305843009213693952]", "[0,0]") + "}", 0, "takes more than 2^63-1 bytes"},
      {"{\"__metadata__\":{\"k\":1}}", 0, "__metadata__: value of \"k\" must be a string, not 1"},
      {"{\"__metadata__\":{\"k\":null}}", 0, "__metadata__: value of \"k\" must be a string, not null"},
      {"{\"__metadata__\":{\"k\":{}}}", 0, "__metadata__: value of \"k\" must be a string, not an object"},
      {"{\"__metadata__\":{\"k\":[]}}", 0, "__metadata__: value of \"k\" must be a string, not an array"},
      {"{\"__metadata__\":[]}", 0, "__metadata__ must be an object of strings, not an array"},
      {"{\"__metadata__\":\"x\"}", 0, "__metadata__ must be an object of strings, not \"x\""},
      {"{\"__metadata__\":null}", 0, "__metadata__ must be an object of strings, not null"},
  };
  for (const Malformed& c : cases) ExpectRefused(c);
}

TEST(SafetensorsHeader, RefusesDataThatIsNotTiled) {
  const std::string a = Tensor("a", "U8", "[4]", "[0,4]");
  const Malformed cases[] = {
      {"{" + Tensor("a", "U8", "[4]", "[1,5]") + "}", 5, "hole of 1 bytes at offset 0 before tensor \"a\""},
      {"{" + a + "," + Tensor("b", "U8", "[4]", "[6,10]") + "}", 10,
       "hole of 2 bytes at offset 4 before tensor \"b\""},
      {"{" + a + "," + Tensor("b", "U8", "[4]", "[3,7]") + "}", 7,
       "tensor \"b\" at offset 3 overlaps tensor \"a\", which ends at 4"},
      {"{" + a + "," + Tensor("b", "U8", "[4]", "[0,4]") + "}", 4, "overlaps tensor \"a\""},
      {"{" + a + "," + Tensor("b", "U8", "[0]", "[2,2]") + "}", 4, "tensor \"b\" at offset 2 overlaps"},
      {"{" + a + "}", 5, "1 bytes after the last tensor, from offset 4"},
      {"{}", 3, "3 bytes after the last tensor"},
      {"{" + a + "}", 3, "tensor \"a\" ends at offset 4, past the data's 3 bytes"},
      {"{" + Tensor("a", "U8", "[9223372036854775807]", "[0,9223372036854775807]") + "}", 4,
       "ends at offset 9223372036854775807, past the data's 4 bytes"},
  };
  for (const Malformed& c : cases) ExpectRefused(c);
  EXPECT_FALSE(Parse("{}", 9).ok());  // a header longer than its file
}

TEST(SafetensorsHeader, AcceptsWhatIsUnusualButLegal) {
  // Unsorted, unaligned, unknown fields of every kind (also with floats), empty tensors in between, padding.
  const std::string json =
      "{" + Tensor("late", "F32", "[2]", "[3,11]") +
      ",\"first\":{\"extra\":{\"x\":[1.5,-3,{\"dtype\":null}]}," +
      "\"dtype\":\"U8\",\"shape\":[3],\"note\":null,\"data_offsets\":[0,3],\"last\":[[]]}," +
      Tensor("empty", "F64", "[0,9223372036854775807]", "[3,3]") + "," +
      Tensor("scalar", "BOOL", "[]", "[11,12]") + ",\"__metadata__\":{\"format\":\"np\",\"\":\"\"}}   \n";
  const absl::StatusOr<Header> header = ParseWithData(json, 12);
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->tensors.size(), 4u);
  EXPECT_EQ(header->tensors[0].name, "first");
  EXPECT_EQ(header->tensors[1].name, "empty");
  EXPECT_EQ(header->tensors[2].name, "late");
  EXPECT_EQ(header->tensors[2].shape, (std::vector<int64_t>{2}));
  EXPECT_EQ(header->tensors[3].name, "scalar");
  EXPECT_EQ(header->metadata.at("format"), "np");
  EXPECT_EQ(header->data_begin, 8 + json.size());
  EXPECT_EQ(header->data_bytes, 12u);
  EXPECT_TRUE(ParseWithData("{}", 0)->tensors.empty());
}

TEST(SafetensorsHeader, KnowsEveryDtype) {
  const std::pair<const char*, uint64_t> types[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
      {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"I64", 8},     {"U64", 8}, {"F64", 8}};
  for (const auto& [name, size] : types) {
    const absl::StatusOr<StoredType> type = StoredTypeFromName(name);
    ASSERT_TRUE(type.ok()) << type.status();
    EXPECT_EQ(Name(*type), name);
    EXPECT_EQ(SizeOf(*type), size) << name;
  }
  EXPECT_EQ(ToStored(DType::kFloat32), StoredType::kF32);
  EXPECT_EQ(ToStored(DType::kBFloat16), StoredType::kBF16);
  EXPECT_EQ(ToStored(DType::kFloat16), StoredType::kF16);
}

TEST(SafetensorsHeader, LayOutWritesTheUsualForm) {
  const absl::StatusOr<FilePlan> plan = LayOut({{"b", StoredType::kF32, {2, 3}},
                                                {"c", StoredType::kBF16, {3}},
                                                {"a\n\"", StoredType::kF32, {}},
                                                {"z", StoredType::kI64, {1}},
                                                {"u", StoredType::kU8, {0}}},
                                               {{"step", "17"}});
  ASSERT_TRUE(plan.ok()) << plan.status();
  const std::string json =
      "{\"__metadata__\":{\"format\":\"pt\",\"step\":\"17\"},"
      "\"z\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]},"
      "\"a\\n\\\"\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[8,12]},"
      "\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[12,36]},"
      "\"c\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[36,42]},"
      "\"u\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[42,42]}}";
  EXPECT_EQ(plan->header_bytes.size() % 8, 0u);
  EXPECT_EQ(plan->header_bytes.substr(0, 8), Prefix(plan->header_bytes.size() - 8));
  EXPECT_EQ(plan->header_bytes.substr(8, json.size()), json);
  EXPECT_EQ(plan->header_bytes.find_first_not_of(' ', 8 + json.size()), std::string::npos);
  EXPECT_EQ(plan->header.file_bytes(), plan->header_bytes.size() + 42);

  const absl::StatusOr<FilePlan> again = PlanFromHead(plan->header_bytes, plan->header.file_bytes());
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_EQ(again->header.tensors.size(), 5u);
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(again->header.tensors[i].name, plan->header.tensors[i].name);
    EXPECT_EQ(again->header.tensors[i].begin, plan->header.tensors[i].begin);
    EXPECT_EQ(again->header.tensors[i].shape, plan->header.tensors[i].shape);
  }
  EXPECT_EQ(again->header.metadata, plan->header.metadata);
  EXPECT_FALSE(PlanFromHead(plan->header_bytes + " ", plan->header.file_bytes()).ok());
  EXPECT_FALSE(PlanFromHead(plan->header_bytes, plan->header.file_bytes() + 1).ok());
}

TEST(SafetensorsHeader, LayOutRefusesWhatCannotBeStored) {
  const auto error = [](std::vector<TensorSpec> tensors, const Metadata& metadata = {}) {
    return std::string(LayOut(std::move(tensors), metadata).status().message());
  };
  EXPECT_THAT(error({{"", StoredType::kF32, {1}}}), HasSubstr("no name"));
  EXPECT_THAT(error({{"__metadata__", StoredType::kF32, {1}}}), HasSubstr("may not be called"));
  EXPECT_THAT(error({{"a", StoredType::kF32, {1}}, {"a", StoredType::kU8, {1}}}),
              HasSubstr("\"a\" is there twice"));
  EXPECT_THAT(error({{"\xFF", StoredType::kF32, {1}}}), HasSubstr("tensor name is not UTF-8: \"\\xff\""));
  EXPECT_THAT(error({{"a", StoredType::kF32, {-1}}}), HasSubstr("tensor \"a\": shape [-1] has a negative"));
  EXPECT_THAT(error({{"a", StoredType::kF32, {1LL << 62}}}), HasSubstr("more than 2^63-1"));
  EXPECT_THAT(error({{"a", StoredType::kU8, {1LL << 62}}, {"b", StoredType::kU8, {1LL << 62}}}),
              HasSubstr("tensor \"b\" ends past"));
  EXPECT_THAT(error({}, {{"k", "\xFF"}}), HasSubstr("__metadata__ entry \"k\" is not UTF-8"));
  EXPECT_EQ(LayOut({{std::string(25'000'000, 'x'), StoredType::kU8, {1}}}, {}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(SafetensorsHeader, BoundsHoldWhereverATensorIsPlaced) {
  std::vector<TensorSpec> specs = {{"w\xC3\xA9\"", StoredType::kF8E4M3, {123456, 7, 0}},
                                   {"x", StoredType::kU8, {}}};
  const Metadata metadata = {{"k", "\n\n"}};
  uint64_t bound = *HeaderBound(metadata);
  for (const TensorSpec& spec : specs) bound += *HeaderBound(spec);
  EXPECT_GE(bound, LayOut(specs, metadata)->header_bytes.size() - kPrefixBytes);
  EXPECT_LE(bound, LayOut(specs, metadata)->header_bytes.size() + 200);
}

// Mutates a valid header; whatever is still accepted must keep the invariants and survive writing and reading
// again.
TEST(SafetensorsHeader, MutationsNeverCrashAndNeverSlipThrough) {
  const char* given = std::getenv("SHERD_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::cout << "SHERD_TEST_SEED=" << seed << std::endl;
  std::mt19937_64 random(seed);
  const FilePlan plan = *LayOut({{"wte", StoredType::kF32, {4, 3}},
                                 {"h.0.ln", StoredType::kBF16, {6}},
                                 {"h.0.b", StoredType::kU8, {0}},
                                 {"step", StoredType::kI64, {}}},
                                {{"step", "17"}});
  const std::string base = plan.header_bytes.substr(kPrefixBytes);
  const std::string pieces[] = {"{",
                                "}",
                                "[",
                                "]",
                                "\"",
                                ",",
                                ":",
                                "-1",
                                "1.5",
                                "1e9",
                                "0",
                                "48",
                                "null",
                                "\\u0000",
                                "\xFF",
                                std::string(1, '\0'),
                                "\"dtype\"",
                                "F64",
                                "[0,48]",
                                " ",
                                "9223372036854775807",
                                "18446744073709551616",
                                "\"shape\":[]",
                                "{}"};
  int accepted = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string json = base;
    const int edits = 1 + static_cast<int>(random() % 4);
    for (int e = 0; e < edits && !json.empty(); ++e) {
      const size_t at = random() % json.size();
      const size_t length = std::min<size_t>(random() % 12, json.size() - at);
      switch (random() % 5) {
        case 0:
          json[at] = static_cast<char>(random());
          break;
        case 1:
          json.erase(at, length);
          break;
        case 2:
          json.insert(at, pieces[random() % std::size(pieces)]);
          break;
        case 3:
          json.replace(at, length, pieces[random() % std::size(pieces)]);
          break;
        case 4:
          json.insert(random() % json.size(), json.substr(at, length * 8));
          break;
      }
    }
    const absl::StatusOr<Header> header = ParseWithData(json, plan.header.data_bytes);
    if (!header.ok()) {
      ASSERT_FALSE(header.status().message().empty());
      ASSERT_EQ(header.status().message().find('\n'), absl::string_view::npos) << header.status();
      continue;
    }
    ++accepted;
    uint64_t reached = 0;
    for (const TensorEntry& tensor : header->tensors) {
      ASSERT_EQ(tensor.begin, reached) << json;
      ASSERT_EQ(*BytesOf(tensor.dtype, tensor.shape), tensor.bytes()) << json;
      reached = tensor.end;
    }
    ASSERT_EQ(reached, plan.header.data_bytes) << json;
    const absl::StatusOr<std::string> bytes = Serialize(header->tensors, header->metadata);
    if (!bytes.ok()) continue;  // an empty name, which is legal to read
    const absl::StatusOr<FilePlan> again = PlanFromHead(*bytes, bytes->size() + plan.header.data_bytes);
    ASSERT_TRUE(again.ok()) << again.status() << " for " << json;
    ASSERT_EQ(again->header.tensors.size(), header->tensors.size());
  }
  EXPECT_GT(accepted,
            100);  // names and padding may change freely: else the mutations are too wild to test anything
  EXPECT_LT(accepted, 10'000);
}

}  // namespace
}  // namespace sherd::formats
