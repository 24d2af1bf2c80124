#include "runtime/formats/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "runtime/formats/atomic_file.h"
#include "runtime/formats/safetensors_file.h"

namespace sherd::formats {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/checkpoint_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { fs::remove_all(directory_); }

  std::string Path(const std::string& name) const { return (directory_ / name).string(); }
  void WriteText(const std::string& name, const std::string& text) const {
    std::ofstream(Path(name)) << text;
  }

  // Each tensor is filled with the first letter of its name.
  void WriteFile(const std::string& name, const FilePlan& plan) const {
    auto writer = SafetensorsWriter::Create(Path(name), plan, {});
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (const TensorEntry& tensor : plan.header.tensors) {
      ASSERT_TRUE((*writer)->WriteAt(tensor.name, 0, std::string(tensor.bytes(), tensor.name[0])).ok());
    }
    ASSERT_TRUE((*writer)->Commit().ok());
  }
  void WritePlan(const CheckpointPlan& plan) const {
    for (const PlannedFile& file : plan.files) WriteFile(file.name, file.plan);
    if (plan.is_sharded()) {
      ASSERT_TRUE(WriteWhole(Path(plan.index_name()), *SerializeIndex(IndexOf(plan))).ok());
    }
  }
  std::string OpenError(const std::string& name = "") const {
    const auto checkpoint = Checkpoint::Open(Path(name));
    EXPECT_EQ(checkpoint.status().message().find('\n'), absl::string_view::npos) << checkpoint.status();
    return std::string(checkpoint.status().message());
  }

  fs::path directory_;
  // 40, 80, 4 and 600 bytes.
  const std::vector<TensorSpec> specs_ = {{"a", StoredType::kF32, {10}},
                                          {"b", StoredType::kF32, {10, 2}},
                                          {"c", StoredType::kF32, {}},
                                          {"d", StoredType::kBF16, {300}}};
};

TEST_F(CheckpointTest, OneFileNeedsNoIndex) {
  const auto plan = SplitPlan(specs_, 1 << 20, "model", {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->files.size(), 1u);
  EXPECT_EQ(plan->files[0].name, "model.safetensors");
  EXPECT_EQ(plan->total_bytes, 724u);
  WritePlan(*plan);
  for (const std::string path : {"", "model.safetensors"}) {
    const auto checkpoint = Checkpoint::Open(Path(path));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->tensors().size(), 4u);
    EXPECT_EQ((*checkpoint)->total_bytes(), 724u);
  }
}

TEST_F(CheckpointTest, ShardsReadBackAsOne) {
  const auto plan = SplitPlan(specs_, 400, "model", {{"step", "9"}});
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_GT(plan->files.size(), 1u);
  std::set<std::string> names;
  for (size_t i = 0; i < plan->files.size(); ++i) {
    const PlannedFile& file = plan->files[i];
    EXPECT_EQ(file.name, absl::StrCat("model-0000", i + 1, "-of-0000", plan->files.size(), ".safetensors"));
    EXPECT_TRUE(file.plan.header.tensors.size() == 1 || file.plan.header.file_bytes() <= 400);
    EXPECT_EQ(file.plan.header.metadata.at("step"), "9");
    for (const TensorEntry& tensor : file.plan.header.tensors) EXPECT_TRUE(names.insert(tensor.name).second);
  }
  EXPECT_EQ(names.size(), 4u);
  WritePlan(*plan);

  for (const std::string path : {"", "model.safetensors.index.json"}) {
    const auto checkpoint = Checkpoint::Open(Path(path));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    ASSERT_EQ((*checkpoint)->tensors().size(), 4u);
    EXPECT_EQ((*checkpoint)->total_bytes(), 724u);
    EXPECT_EQ((*checkpoint)->tensors()[3].entry->name, "d");
    ASSERT_NE((*checkpoint)->Find("b"), nullptr);
    EXPECT_EQ((*checkpoint)->Find("b")->entry->shape, (std::vector<int64_t>{10, 2}));
    EXPECT_EQ((*checkpoint)->Find("x"), nullptr);
    std::string bytes(600, ' ');
    ASSERT_TRUE((*checkpoint)->Read("d", 0, absl::MakeSpan(&bytes[0], 600)).ok());
    EXPECT_EQ(bytes, std::string(600, 'd'));
    EXPECT_EQ((*checkpoint)->Read("x", 0, {}).code(), absl::StatusCode::kNotFound);
  }
}

TEST_F(CheckpointTest, SplitsBeforeTheHeaderGetsTooLong) {
  // Tiny tensors with names so long that the header, not the data, fills a file.
  std::vector<TensorSpec> specs;
  for (int i = 0; i < 30; ++i) {
    specs.push_back({absl::StrCat(std::string(1'000'000, 'x'), i), StoredType::kU8, {1}});
  }
  const auto plan = SplitPlan(specs, uint64_t{1} << 40, "m", {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->files.size(), 2u);
  for (const PlannedFile& file : plan->files) {
    EXPECT_LE(file.plan.header_bytes.size(), kPrefixBytes + kMaxWrittenHeaderBytes);
  }
  EXPECT_EQ(plan->files[0].plan.header.tensors.size(), 24u);
}

TEST_F(CheckpointTest, SplitPlanRefusesBadInput) {
  const auto error = [](const std::vector<TensorSpec>& specs, uint64_t max, absl::string_view stem) {
    return std::string(SplitPlan(specs, max, stem, {}).status().message());
  };
  EXPECT_THAT(error(specs_, 0, "m"), HasSubstr("positive size"));
  EXPECT_THAT(error(specs_, 1, ""), HasSubstr("must be plain"));
  EXPECT_THAT(error(specs_, 1, "a/b"), HasSubstr("must be plain"));
  // In different files no header would notice.
  EXPECT_THAT(error({specs_[0], specs_[3], specs_[0]}, 1, "m"), HasSubstr("tensor \"a\" is there twice"));
  EXPECT_THAT(error({{"a", StoredType::kF32, {-1}}}, 1, "m"), HasSubstr("tensor \"a\": shape [-1]"));
  EXPECT_EQ(SplitPlan({}, 1, "m", {})->files.size(), 1u);
}

TEST_F(CheckpointTest, FolderErrorsAreNamed) {
  EXPECT_EQ(Checkpoint::Open(Path("none")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(OpenError(), HasSubstr("holds neither model.safetensors.index.json nor model.safetensors"));
  const auto plan = SplitPlan(specs_, 400, "model", {});
  WritePlan(*plan);
  WriteFile("model.safetensors", *LayOut({specs_[0]}, {}));
  EXPECT_THAT(OpenError(), HasSubstr("holds both"));
  fs::remove(Path("model.safetensors"));
  fs::remove(Path(plan->files[1].name));
  EXPECT_THAT(OpenError(),
              HasSubstr(absl::StrCat("shard \"", plan->files[1].name, "\" of tensor \"c\": cannot open")));
  EXPECT_EQ(Checkpoint::Open(directory_.string()).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTest, IndexAndFilesMustAgree) {
  WriteFile("x.safetensors", *LayOut({specs_[0], specs_[1]}, {}));
  WriteFile("y.safetensors", *LayOut({specs_[1], specs_[2]}, {}));
  const auto index = [this](const std::string& map) {
    WriteText("i.json", "{\"weight_map\":{" + map + "}}");
  };
  index("\"a\":\"x.safetensors\",\"b\":\"x.safetensors\",\"c\":\"y.safetensors\"");
  EXPECT_THAT(OpenError("i.json"),
              HasSubstr("tensor \"b\" is in two files, \"x.safetensors\" and \"y.safetensors\""));
  index("\"a\":\"x.safetensors\",\"q\":\"x.safetensors\"");
  EXPECT_THAT(OpenError("i.json"), HasSubstr("tensor \"q\" is listed but absent from \"x.safetensors\""));
  index("\"a\":\"x.safetensors\"");
  EXPECT_THAT(OpenError("i.json"), HasSubstr("tensor \"b\" is in \"x.safetensors\" but not listed"));
  index("\"a\":\"x.safetensors\",\"b\":\"x.safetensors\"");
  EXPECT_TRUE(Checkpoint::Open(Path("i.json")).ok());
  WriteText("x.safetensors", "short");
  EXPECT_THAT(OpenError("i.json"), HasSubstr("x.safetensors: only 5 bytes"));
}

TEST_F(CheckpointTest, MalformedIndexesAreRefused) {
  const std::pair<std::string, std::string> cases[] = {
      {"", "begin with '{', not with nothing"},
      {"{}", "weight_map is missing"},
      {"{\"metadata\":{\"weight_map\":{}}}", "weight_map is missing"},
      {"{\"weight_map\":[]}", "weight_map must be an object of tensor to file, not an array"},
      {"{\"weight_map\":null}", "weight_map must be an object of tensor to file, not null"},
      {"{\"weight_map\":{\"a\":1}}", "file of tensor \"a\" must be a string, not 1"},
      {"{\"weight_map\":{\"a\":{}}}", "file of tensor \"a\" must be a string, not an object"},
      {"{\"weight_map\":{\"a\":[\"f\"]}}", "file of tensor \"a\" must be a string, not an array"},
      {"{\"weight_map\":{\"a\":\"f\",\"a\":\"f\"}}", "duplicate key \"a\" inside \"weight_map\""},
      {"{\"weight_map\":{\"a\":\"../f\"}}", "must be a plain name"},
      {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "must be a plain name"},
      {"{\"weight_map\":{\"a\":\"..\"}}", "must be a plain name"},
      {"{\"weight_map\":{\"a\":\"\"}}", "must be a plain name"},
      {"{\"weight_map\":{\"a\":\"f\\u0000g\"}}", "must be a plain name"},
  };
  for (const auto& [json, error] : cases) {
    const auto index = ParseIndex(json);
    EXPECT_EQ(index.status().code(), absl::StatusCode::kInvalidArgument) << json;
    EXPECT_THAT(std::string(index.status().message()), HasSubstr(error)) << json;
  }
  WriteText("i.json", "{}");
  EXPECT_THAT(OpenError("i.json"), HasSubstr("i.json: weight_map is missing"));
}

TEST_F(CheckpointTest, IndexesOfOtherProgramsAreRead) {
  // Unknown fields anywhere but in the map, and a total that is a float or missing.
  const auto index = ParseIndex(
      "{\"metadata\":{\"total_size\":1.5e9,\"x\":[{}]},\"weight_map\":{\"a\":\"f\"},\"more\":{\"y\":[1]}}");
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_EQ(index->total_bytes, 0u);
  EXPECT_EQ(index->weight_map.at("a"), "f");
}

TEST_F(CheckpointTest, IndexHasTheUsualForm) {
  IndexFile index;
  index.total_bytes = 12;
  index.weight_map = {{"b", "f2"}, {"a\"", "f1"}};
  EXPECT_EQ(
      *SerializeIndex(index),
      "{\n  \"metadata\": {\n    \"total_size\": 12\n  },\n  \"weight_map\": {\n    \"a\\\"\": \"f1\",\n"
      "    \"b\": \"f2\"\n  }\n}\n");
  const auto again = ParseIndex(*SerializeIndex(index));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->total_bytes, 12u);
  EXPECT_EQ(again->weight_map, index.weight_map);
}

}  // namespace
}  // namespace sherd::formats
