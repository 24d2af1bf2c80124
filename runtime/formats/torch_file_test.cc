// torch.save files: what is written is read, malformed ones are refused, damage is seen.
#include "runtime/formats/torch_file.h"

#include <fstream>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/formats/atomic_file.h"
#include "runtime/formats/crc32.h"
#include "runtime/formats/torch_state_dict.h"
#include "runtime/formats/torch_writer.h"
#include "runtime/formats/zip_layout.h"
#include "runtime/test_root.h"

namespace sherd::formats {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Stored {
  std::string name;
  StoredType dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

const std::vector<Stored>& SomeTensors() {
  static const auto* const all = new std::vector<Stored>{
      {"wte", StoredType::kF32, {2, 3}, "abcdefghijklmnopqrstuvwx"},
      {"none", StoredType::kF32, {0, 4}, ""},
      {"scale", StoredType::kF64, {}, "12345678"},
      {"half", StoredType::kBF16, {3}, "uvwxyz"},
      {"mask", StoredType::kBool, {1}, std::string(1, '\1')},
  };
  return *all;
}

class TorchFileTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return root_.path() + "/" + name; }

  // A state dict of tensors, in pieces of `piece` bytes.
  std::string Write(const std::vector<Stored>& tensors, size_t piece = 7) {
    TorchTree tree;
    std::string data;
    tree.pickle().BeginDict();
    for (const Stored& t : tensors) {
      tree.pickle().String(t.name);
      tree.Tensor(t.dtype, t.shape);
      data += t.bytes;
    }
    tree.pickle().EndDict();
    absl::StatusOr<TorchPlan> plan = std::move(tree).LayOut();
    EXPECT_TRUE(plan.ok()) << plan.status();
    absl::StatusOr<std::unique_ptr<TorchWriter>> writer = TorchWriter::Create(Path("w.pt"), *plan);
    EXPECT_TRUE(writer.ok()) << writer.status();
    for (size_t at = 0; at < data.size(); at += piece) {
      EXPECT_TRUE((*writer)->WriteData(at, absl::string_view(data).substr(at, piece)).ok());
    }
    EXPECT_TRUE((*writer)->Commit().ok());
    return *ReadWhole(Path("w.pt"), 1 << 20);
  }
  // All tensors of a state dict of these bytes.
  absl::StatusOr<std::vector<Stored>> Read(const std::string& bytes) {
    std::ofstream(Path("r.pt"), std::ios::binary) << bytes;
    absl::StatusOr<std::unique_ptr<TorchStateDict>> dict = TorchStateDict::Open(Path("r.pt"));
    if (!dict.ok()) return dict.status();
    std::vector<Stored> out;
    for (const TensorEntry& entry : (*dict)->tensors()) {
      Stored& t =
          out.emplace_back(Stored{entry.name, entry.dtype, entry.shape, std::string(entry.bytes(), 0)});
      absl::Status status = (*dict)->Read(t.name, 0, absl::MakeSpan(&t.bytes[0], t.bytes.size()));
      if (!status.ok()) return status;
    }
    return out;
  }
  // The error of a file whose pickle is one dict of "w" to `value`, with a storage "0" of 24 bytes.
  std::string ErrorOf(const std::string& value) {
    return std::string(Read(Zipped("\x80\x02}(U\x01w" + value + "u.")).status().message());
  }
  // A file of `pickle` and a storage "0" of 24 bytes.
  std::string Zipped(const std::string& pickle) {
    const ZipLayout layout = *ZipLayout::Make({{"m/data.pkl", pickle.size()}, {"m/data/0", 24}});
    const std::string data = SomeTensors()[0].bytes;
    const std::vector<uint32_t> crcs = {ExtendCrc32(0, pickle), ExtendCrc32(0, data)};
    std::string out = layout.LocalHeader(0, crcs[0]) + pickle;
    out += layout.LocalHeader(1, crcs[1]) + data;
    return out + layout.Directory(crcs);
  }

  runtime::TestRoot root_{"/dev/shm"};  // thousands of small files
};

bool Same(const std::vector<Stored>& a, const std::vector<Stored>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Stored& x, const Stored& y) {
    return x.name == y.name && x.dtype == y.dtype && x.shape == y.shape && x.bytes == y.bytes;
  });
}

TEST_F(TorchFileTest, ReadsWhatItWrites) {
  for (const size_t piece : {1, 7, 1000}) {
    absl::StatusOr<std::vector<Stored>> read = Read(Write(SomeTensors(), piece));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(Same(*read, SomeTensors())) << piece;
  }
  EXPECT_TRUE(Read(Write({}))->empty());
}

TEST_F(TorchFileTest, WriterTakesAllBytesInOrderOrNothing) {
  TorchTree tree;
  tree.Tensor(StoredType::kF32, {2});
  absl::StatusOr<TorchPlan> plan = std::move(tree).LayOut();
  ASSERT_TRUE(plan.ok());
  {
    absl::StatusOr<std::unique_ptr<TorchWriter>> writer = TorchWriter::Create(Path("w.pt"), *plan);
    ASSERT_TRUE(writer.ok());
    EXPECT_FALSE((*writer)->WriteData(4, "abcd").ok());
    EXPECT_TRUE((*writer)->WriteData(0, "abcd").ok());
    EXPECT_FALSE((*writer)->WriteData(0, "abcd").ok());
    EXPECT_EQ((*writer)->WriteData(4, "abcde").code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ((*writer)->Commit().code(), absl::StatusCode::kFailedPrecondition);
  }
  EXPECT_FALSE(ReadWhole(Path("w.pt"), 1000).ok());
  TorchTree wrong;
  wrong.Tensor(StoredType::kU32, {2});
  EXPECT_FALSE(std::move(wrong).LayOut().ok());
  TorchTree negative;
  negative.Tensor(StoredType::kF32, {-2});
  EXPECT_FALSE(std::move(negative).LayOut().ok());
}

// Every file cut short and every byte changed is an error, or changes no value.
TEST_F(TorchFileTest, DamageIsAnErrorOrWithoutEffect) {
  const std::string good = Write(SomeTensors());
  for (size_t size = 0; size < good.size(); ++size) EXPECT_FALSE(Read(good.substr(0, size)).ok()) << size;
  int errors = 0;
  for (size_t at = 0; at < good.size(); ++at) {
    for (const unsigned char flip : {0x01, 0x80, 0xFF}) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ flip);
      absl::StatusOr<std::vector<Stored>> read = Read(bad);
      EXPECT_TRUE(!read.ok() || Same(*read, SomeTensors())) << at << " xor " << int{flip};
      errors += !read.ok();
    }
  }
  EXPECT_GT(errors, 1000);
}

// The same within the pickle, whose checksum is made to match.
TEST_F(TorchFileTest, DamagedPicklesNeverCrash) {
  TorchTree tree;
  tree.pickle().BeginDict();
  tree.pickle().String("w");
  tree.Tensor(StoredType::kF32, {2, 3});
  tree.pickle().EndDict();
  const std::string good = std::move(tree).LayOut()->pickle;
  ASSERT_TRUE(Read(Zipped(good)).ok());
  for (size_t at = 0; at < good.size(); ++at) {
    EXPECT_FALSE(Read(Zipped(good.substr(0, at))).ok());
    for (int value = 0; value < 256; value += 3) {
      std::string bad = good;
      bad[at] = static_cast<char>(value);
      (void)Read(Zipped(bad)).status();
    }
  }
}

const char kTensor[] = "ctorch._utils\n_rebuild_tensor_v2\n";
const char kStorage[] =
    "(U\x07storagectorch\nFloatStorage\nU\x01"
    "0U\x03"
    "cpuK\x06tQ";
const char kHooks[] = "\x89}tR";

TEST_F(TorchFileTest, ReadsTensorsThatShareAStorage) {
  const std::string parts = absl::StrCat(kTensor, "(", kStorage);
  const std::string rows = absl::StrCat(parts, "K\x03K\x03\x85K\x01\x85", kHooks);  // the second row
  const std::string turned = absl::StrCat(parts, std::string("K\0K\x03K\x02\x86K\x01K\x03\x86", 12), kHooks);
  const std::string spread =
      absl::StrCat(parts, std::string("K\x01K\x02\x85K\0\x85", 8), kHooks);  // stride 0
  const std::string parameter = absl::StrCat("ctorch._utils\n_rebuild_parameter\n", rows, "\x88}\x87R");
  absl::StatusOr<std::vector<Stored>> read = Read(Zipped(absl::StrCat(
      "\x80\x02}(U\x01r", rows, "U\x01t", turned, "U\x01s", spread, "U\x01p", parameter, "U\x01nNu.")));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->size(), 4);
  EXPECT_EQ((*read)[0].bytes, "mnopqrstuvwx");
  EXPECT_THAT((*read)[1].shape, ElementsAre(3, 2));
  EXPECT_EQ((*read)[1].bytes, "abcdmnopefghqrstijkluvwx");
  EXPECT_EQ((*read)[2].bytes, "efghefgh");
  EXPECT_EQ((*read)[3].bytes, "mnopqrstuvwx");
}

TEST_F(TorchFileTest, RefusesTensorsThatPassTheirStorage) {
  const std::string parts = absl::StrCat(kTensor, "(", kStorage);
  const auto with = [&](const std::string& rest) { return ErrorOf(absl::StrCat(parts, rest, kHooks)); };
  EXPECT_THAT(with("K\x04K\x03\x85K\x01\x85"), HasSubstr("passes the end of its storage"));
  EXPECT_THAT(with("K\x01K\x03\x85K\x03\x85"), HasSubstr("passes the end of its storage"));
  EXPECT_THAT(with("K\x01K\x03\x85K\x01K\x01\x86"), HasSubstr("strides than dimensions"));
  EXPECT_THAT(with("J\xff\xff\xff\xffK\x03\x85K\x01\x85"), HasSubstr("offset"));
  EXPECT_THAT(with("K\x01J\xff\xff\xff\xff\x85K\x01\x85"), HasSubstr("natural numbers"));
  EXPECT_THAT(with("K\x01K\x02\x85\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85"),
              HasSubstr("passes the end"));
  EXPECT_THAT(with("K\x01\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85K\x01\x85"), HasSubstr("2^63-1"));
  EXPECT_THAT(ErrorOf(absl::StrCat(kTensor, "(NK\x01K\x01\x85K\x01\x85", kHooks)),
              HasSubstr("storage is None"));
  std::string wrong = parts;
  wrong.replace(wrong.find("K\x06"), 2, "K\x07");
  EXPECT_THAT(ErrorOf(absl::StrCat(wrong, "K\x01K\x01\x85K\x01\x85", kHooks)),
              HasSubstr("states 7 elements"));
  wrong = parts;
  wrong.replace(wrong.find("U\x01"
                           "0"),
                3,
                "U\x01"
                "9");
  EXPECT_THAT(ErrorOf(absl::StrCat(wrong, "K\x01K\x01\x85K\x01\x85", kHooks)), HasSubstr("\"9\" is missing"));
}

TEST_F(TorchFileTest, RefusesWhatIsNoStateDict) {
  EXPECT_THAT(ErrorOf("K\x01"), HasSubstr("\"w\" is an int and no tensor"));
  EXPECT_THAT(ErrorOf("cos\nsystem\nU\x02id\x85R"), HasSubstr("\"os.system\""));
  EXPECT_THAT(std::string(Read(Zipped("\x80\x02K\x01.")).status().message()),
              HasSubstr("an int and no state dict"));
  const std::string old("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.");
  EXPECT_THAT(std::string(Read(old).status().message()), HasSubstr("before PyTorch 1.6"));
}

TEST_F(TorchFileTest, FindsTheWeightsOfACheckpoint) {
  const std::string tensor =
      absl::StrCat(kTensor, "(", kStorage, std::string("K\0K\x06\x85K\x01\x85", 8), kHooks);
  const auto names = [&](const std::string& dict) {
    std::vector<std::string> out;
    absl::StatusOr<std::vector<Stored>> read = Read(Zipped(absl::StrCat("\x80\x02}(", dict, "u.")));
    EXPECT_TRUE(read.ok()) << read.status();
    if (read.ok()) {
      for (const Stored& t : *read) out.push_back(t.name);
    }
    return out;
  };
  EXPECT_THAT(names(absl::StrCat("U\x05model}(U\x01w", tensor,
                                 "uU\x09optimizer}(U\x07"
                                 "exp_avg}(U\x01w",
                                 tensor, "uuU\x05sherd}")),
              ElementsAre("w", "exp_avg/w"));
  EXPECT_THAT(names(absl::StrCat("U\x05"
                                 "epochK\x01U\x0astate_dict}(U\x01w",
                                 tensor, "uU\x09optimizer}(U\x05state}U\x0cparam_groups]u")),
              ElementsAre("w"));
}

}  // namespace
}  // namespace sherd::formats
