// Pickles: values in and out, and everything refused that is not a value.
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/formats/pickle_reader.h"
#include "runtime/formats/pickle_writer.h"

namespace sherd::formats {
namespace {

using ::testing::HasSubstr;
using Document = std::unique_ptr<PickleDocument>;
using Kind = PickleDocument::Kind;
using Node = PickleDocument::Node;

constexpr absl::string_view kAllowed[] = {"collections.OrderedDict", "torch.Size"};

absl::StatusOr<Document> Parse(std::string bytes, PickleDocument::Options options = {}) {
  return PickleDocument::Parse(std::move(bytes), kAllowed, options);
}
// With protocol and end around.
absl::StatusOr<Document> ParseBody(const std::string& body) { return Parse("\x80\x02" + body + "."); }

TEST(Pickle, ReadsWhatItWrites) {
  PickleWriter w;
  w.BeginDict();
  w.String("numbers");
  w.BeginList();
  for (const int64_t n : {int64_t{0}, int64_t{255}, int64_t{-1}, int64_t{1} << 40, -(int64_t{1} << 40)})
    w.Int(n);
  w.EndList();
  w.String("flag");
  w.Bool(true);
  w.String("size");
  for (int i = 0; i < 2; ++i) {
    if (i == 1) w.String("again");
    w.Global("torch", "Size");
    w.BeginTuple();
    w.BeginTuple();
    w.Int(7);
    w.EndTuple();
    w.EndTuple();
    w.Call();
  }
  w.String("outside");
  w.BeginTuple();
  w.String("storage");
  w.EndTuple();
  w.Persistent();
  w.String("empty");
  w.BeginDict();
  w.EndDict();
  w.EndDict();
  absl::StatusOr<Document> read = Parse(std::move(w).Finish());
  ASSERT_TRUE(read.ok()) << read.status();
  const PickleDocument& d = **read;
  const Node* numbers = d.Find(d.root(), "numbers");
  ASSERT_NE(numbers, nullptr);
  std::vector<int64_t> values;
  for (const auto id : numbers->items) values.push_back(d.at(id).integer);
  EXPECT_THAT(values, ::testing::ElementsAre(0, 255, -1, int64_t{1} << 40, -(int64_t{1} << 40)));
  EXPECT_EQ(d.Find(d.root(), "flag")->integer, 1);
  for (const char* name : {"size", "again"}) {
    const std::vector<PickleDocument::Id>* size = d.ArgumentsOf(*d.Find(d.root(), name), "torch.Size");
    ASSERT_NE(size, nullptr) << name;
    EXPECT_EQ(d.at(d.at(size->front()).items[0]).integer, 7);
  }
  EXPECT_EQ(d.Find(d.root(), "outside")->kind, Kind::kPersistent);
  EXPECT_EQ(d.Find(d.root(), "empty")->kind, Kind::kDict);
  EXPECT_EQ(d.Find(d.root(), "none"), nullptr);
  EXPECT_EQ(d.Find(*numbers, "none"), nullptr);
}

// As CPython 3.11 writes them: pickle.dumps(value, protocol).
TEST(Pickle, ReadsCPythons) {
  // {'a': 1.5, 'b': (True, None, -3)}, protocol 2.
  const std::string two(
      "\x80\x02}q\x00(X\x01\x00\x00\x00"
      "aq\x01G?\xf8\x00\x00\x00\x00\x00\x00X\x01\x00\x00\x00"
      "bq\x02\x88NJ\xfd\xff\xff\xff\x87q\x03u.",
      43);
  // {'b': (True, None, -3), 'c': b'xy', 'd': [1, [2]]}, protocol 4.
  const std::string four(
      "\x80\x04\x95*\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01"
      "b\x94\x88NJ\xfd\xff\xff\xff\x87\x94\x8c\x01"
      "c\x94"
      "C\x02xy\x94\x8c\x01"
      "d\x94]\x94(K\x01]\x94K\x02"
      "aeu.",
      53);
  absl::StatusOr<Document> a = Parse(two);
  ASSERT_TRUE(a.ok()) << a.status();
  EXPECT_EQ((*a)->Find((*a)->root(), "a")->real, 1.5);
  absl::StatusOr<Document> b = Parse(four);
  ASSERT_TRUE(b.ok()) << b.status();
  EXPECT_EQ((*b)->Find((*b)->root(), "c")->text, "xy");
  for (const PickleDocument* d : {a->get(), b->get()}) {
    const Node* tuple = d->Find(d->root(), "b");
    ASSERT_EQ(tuple->items.size(), 3);
    EXPECT_EQ(d->at(tuple->items[1]).kind, Kind::kNone);
    EXPECT_EQ(d->at(tuple->items[2]).integer, -3);
  }
}

TEST(Pickle, OrderedDictsAreDicts) {
  absl::StatusOr<Document> d = ParseBody(
      "ccollections\nOrderedDict\n)R(U\x01"
      "aK\x01u}b");
  ASSERT_TRUE(d.ok()) << d.status();
  EXPECT_EQ((*d)->Find((*d)->root(), "a")->integer, 1);
  d = ParseBody(
      "ccollections\nOrderedDict\n]U\x01"
      "aK\x02\x86"
      "a\x85R");
  ASSERT_TRUE(d.ok()) << d.status();
  EXPECT_EQ((*d)->Find((*d)->root(), "a")->integer, 2);
}

TEST(Pickle, NamesThatAreNotAllowedAreRefused) {
  for (const char* body : {"cos\nsystem\nU\x02id\x85R", "cposix\nsystem\n)R", "c__builtin__\neval\n",
                           "U\x02osU\x06system\x93", "ctorch\nSize\nc__builtin__\ngetattr\n)R"}) {
    const absl::Status status = ParseBody(body).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << body;
    EXPECT_THAT(std::string(status.message()), HasSubstr("refused")) << body;
  }
  EXPECT_THAT(std::string(ParseBody("cos\nsystem\n").status().message()), HasSubstr("\"os.system\""));
  PickleDocument::Options keep;
  keep.keep_unknown = true;
  absl::StatusOr<Document> kept = Parse(
      "\x80\x02"
      "cos\nsystem\nU\x02id\x85R}b.",
      keep);
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ((*kept)->Describe((*kept)->root()), "a call of \"os.system\"");
}

TEST(Pickle, RefusesWhatIsMalformed) {
  EXPECT_FALSE(Parse("").ok());
  EXPECT_FALSE(Parse("N.").ok());
  EXPECT_FALSE(Parse(std::string("\x80\x01N.", 4)).ok());
  EXPECT_FALSE(Parse("\x80\x05N.").ok());
  EXPECT_FALSE(Parse("\x80\x02N.N").ok());
  EXPECT_FALSE(Parse("\x80\x02N").ok());
  for (const char* body : {"",
                           "NN",
                           "(N",
                           "t",
                           "\x85",
                           "N\x86",
                           "u",
                           "}Ns",
                           "K",
                           "J\x01\x02",
                           "X\x05",
                           "Xabcd",
                           "h\x01",
                           "q\x01",
                           "Nq",
                           "NR",
                           "NNR",
                           "ctorch\nSize\nNR",
                           "ctorch",
                           "ctorch\nSize",
                           "NNa",
                           "NNNs",
                           "}(Nu",
                           "b",
                           "NNb",
                           "Q",
                           "\x8a\x09"
                           "123456789",
                           "I1\n",
                           "i",
                           "}}}(\x95",
                           "N\x80\x02",
                           "\xff",
                           "2",
                           "0",
                           "1",
                           "ccollections\nOrderedDict\nNN\x86R",
                           "ccollections\nOrderedDict\n]Na\x85R"}) {
    EXPECT_EQ(ParseBody(body).status().code(), absl::StatusCode::kInvalidArgument) << body;
  }
  // One that holds itself is a value.
  EXPECT_TRUE(ParseBody(std::string("]q\x00h\x00"
                                    "a",
                                    6))
                  .ok());
}

// A few bytes must not mean much memory.
TEST(Pickle, IsBounded) {
  PickleDocument::Options few;
  few.max_nodes = 1000;
  std::string list = "](";
  for (int i = 0; i < 900; ++i) list += 'N';
  list += 'e';
  EXPECT_TRUE(Parse("\x80\x02" + list + ".", few).ok());
  EXPECT_EQ(Parse("\x80\x02](" + std::string(2000, 'N') + "e.", few).status().code(),
            absl::StatusCode::kResourceExhausted);
  // A list of pairs, given to OrderedDict again and again.
  std::string pairs = "ccollections\nOrderedDict\nq\x01](";
  for (int i = 0; i < 200; ++i) pairs += "NN\x86";
  pairs += "e\x85q\x02";
  for (int i = 0; i < 100; ++i) pairs += "h\x01h\x02R0";
  EXPECT_EQ(Parse("\x80\x02" + pairs + ".", few).status().code(), absl::StatusCode::kResourceExhausted);
  few.max_bytes = 10;
  EXPECT_EQ(Parse("\x80\x02" + list + ".", few).status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace sherd::formats
