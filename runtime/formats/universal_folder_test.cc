// Universal folders as checkpoints: what is where, and what is refused. Files that DeepSpeed itself wrote are
// read by tests/interop.
#include "runtime/formats/universal_folder.h"

#include <sys/stat.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/formats/atomic_file.h"
#include "runtime/formats/checkpoint.h"
#include "runtime/formats/torch_writer.h"
#include "runtime/test_root.h"

namespace sherd::formats {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class UniversalFolderTest : public ::testing::Test {
 protected:
  UniversalFolderTest() {
    for (const char* folder : {"", "/zero", "/zero/a.w"}) ::mkdir((tag_ + folder).c_str(), 0700);
  }
  // A file of one tree; `data` are the bytes of its tensors.
  void Save(const std::string& file, TorchTree&& tree, const std::string& data) {
    absl::StatusOr<TorchPlan> plan = std::move(tree).LayOut();
    ASSERT_TRUE(plan.ok()) << plan.status();
    absl::StatusOr<std::unique_ptr<TorchWriter>> writer = TorchWriter::Create(tag_ + "/" + file, *plan);
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE((*writer)->WriteData(0, data).ok());
    ASSERT_TRUE((*writer)->Commit().ok());
  }
  // {"cat_dim": 0, "param": ...}, or the tensor alone if `bare`.
  void SaveParam(const std::string& file, const std::vector<int64_t>& shape, const std::string& data,
                 bool bare) {
    TorchTree tree;
    if (!bare) {
      tree.pickle().BeginDict();
      tree.pickle().String("cat_dim");
      tree.pickle().Int(0);
      tree.pickle().String("param");
    }
    tree.Tensor(StoredType::kF32, shape);
    if (!bare) tree.pickle().EndDict();
    Save(file, std::move(tree), data);
  }
  void SaveStep(const std::string& file, int64_t step) {
    TorchTree tree;
    tree.pickle().Int(step);
    Save(file, std::move(tree), "");
  }
  static std::vector<std::string> Names(const Checkpoint& checkpoint) {
    std::vector<std::string> names;
    for (const CheckpointTensor& t : checkpoint.tensors()) names.push_back(t.entry->name);
    return names;
  }
  static std::string Bytes(const Checkpoint& checkpoint, const std::string& name) {
    std::string bytes(checkpoint.Find(name)->entry->bytes(), '\0');
    EXPECT_TRUE(checkpoint.Read(name, 0, absl::MakeSpan(&bytes[0], bytes.size())).ok()) << name;
    return bytes;
  }
  static float Number(const Checkpoint& checkpoint, const std::string& name) {
    float value = 0;
    std::memcpy(&value, Bytes(checkpoint, name).data(), sizeof value);
    return value;
  }
  std::string Error(const std::string& path) {
    return std::string(Checkpoint::Open(path).status().message());
  }

  runtime::TestRoot root_{"/tmp"};
  const std::string tag_ = root_.path() + "/step7";
};

TEST_F(UniversalFolderTest, StagesOneAndTwo) {
  SaveParam("zero/a.w/fp32.pt", {1, 2}, "abcdefgh", false);
  SaveParam("zero/a.w/exp_avg.pt", {1, 2}, "ABCDEFGH", false);
  SaveStep("zero/a.w/step.pt", 7);
  ASSERT_TRUE(WriteWhole(root_.path() + "/latest_universal", "step7\n").ok());
  for (const std::string& path : {tag_, tag_ + "/", root_.path()}) {
    absl::StatusOr<std::unique_ptr<Checkpoint>> c = Checkpoint::Open(path);
    ASSERT_TRUE(c.ok()) << c.status();
    EXPECT_THAT(Names(**c), ElementsAre("a.w", "exp_avg/a.w", "step/a.w"));
    EXPECT_THAT((*c)->Find("a.w")->entry->shape, ElementsAre(1, 2));
    EXPECT_FALSE((*c)->Find("a.w")->entry->flat);
    EXPECT_EQ(Bytes(**c, "a.w"), "abcdefgh");
    EXPECT_EQ(Bytes(**c, "exp_avg/a.w"), "ABCDEFGH");
    EXPECT_EQ(Number(**c, "step/a.w"), 7);
  }
}

TEST_F(UniversalFolderTest, StageThree) {
  SaveParam("zero/a.w/fp32.pt", {2}, "abcdefgh", true);
  TorchTree tree;
  PickleWriter& p = tree.pickle();
  p.BeginDict();
  p.String("loss_scaler");  // an object of DeepSpeed's: it is looked past
  p.Global("deepspeed.runtime.fp16.loss_scaler", "LossScaler");
  p.EmptyTuple();
  p.Call();
  p.String("optimizer_state_dict");
  p.BeginDict();
  p.String("state");
  p.BeginDict();
  p.Int(0);
  p.BeginDict();
  p.String("step");
  tree.Tensor(StoredType::kF32, {});
  for (int i = 0; i < 4; ++i) p.EndDict();
  Save("zero/optimizer_state.pt", std::move(tree), std::string("\0\0\x10\x41", 4));  // 9.0
  absl::StatusOr<std::unique_ptr<Checkpoint>> c = Checkpoint::Open(tag_);
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_THAT(Names(**c), ElementsAre("a.w", "step/a.w"));
  EXPECT_TRUE((*c)->Find("a.w")->entry->flat);
  EXPECT_EQ(Number(**c, "step/a.w"), 9);
}

TEST_F(UniversalFolderTest, FrozenTensorsComeAlong) {
  SaveParam("zero/a.w/fp32.pt", {1, 2}, "abcdefgh", false);
  TorchTree tree;
  tree.pickle().BeginDict();
  tree.pickle().String("module");
  tree.pickle().BeginDict();
  tree.pickle().String("a.w");
  tree.Tensor(StoredType::kBF16, {1, 2});
  tree.pickle().String("frozen");
  tree.Tensor(StoredType::kF32, {1});
  tree.pickle().EndDict();
  tree.pickle().EndDict();
  Save("mp_rank_00_model_states.pt", std::move(tree), "1234WXYZ");
  absl::StatusOr<std::unique_ptr<Checkpoint>> c = Checkpoint::Open(tag_);
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_THAT(Names(**c), ElementsAre("a.w", "frozen"));
  EXPECT_TRUE((*c)->Find("frozen")->entry->optional);
  EXPECT_EQ(Bytes(**c, "frozen"), "WXYZ");
  EXPECT_EQ(Bytes(**c, "a.w"), "abcdefgh");
}

TEST_F(UniversalFolderTest, RefusesWhatIsIncompleteOrReachesOut) {
  EXPECT_THAT(Error(tag_), HasSubstr("zero/a.w/fp32.pt is missing"));
  for (const char* tag : {"../step7", "..", "", "a/b"}) {
    ASSERT_TRUE(WriteWhole(root_.path() + "/latest_universal", tag).ok());
    EXPECT_THAT(Error(root_.path()), HasSubstr("must be the plain name")) << tag;
  }
  ASSERT_TRUE(WriteWhole(root_.path() + "/latest_universal", "none").ok());
  EXPECT_FALSE(Checkpoint::Open(root_.path()).ok());
  SaveParam("zero/a.w/fp32.pt", {1, 2}, "abcdefgh", false);
  for (const int64_t step : {int64_t{-1}, int64_t{1} << 50}) {
    SaveStep("zero/a.w/step.pt", step);
    EXPECT_THAT(Error(tag_), HasSubstr("no count of steps")) << step;
  }
  SaveStep("zero/a.w/fp32.pt", 1);
  EXPECT_THAT(Error(tag_), HasSubstr("an int where a tensor is due"));
}

}  // namespace
}  // namespace sherd::formats
