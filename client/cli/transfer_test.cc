// Pull and push whole, over gRPC, with files.
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "client/cli/consolidated.h"
#include "client/cli/fake_job.h"
#include "client/cli/progress.h"
#include "client/cli/pull.h"
#include "client/cli/pull_plan.h"
#include "client/cli/push.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"
#include "runtime/dir_tree.h"
#include "runtime/formats/checkpoint.h"
#include "runtime/formats/safetensors_file.h"
#include "runtime/test_root.h"

namespace sherd::cli {
namespace {

using formats::Checkpoint;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TransferTest : public ::testing::Test {
 protected:
  TransferTest() {
    job_.AddTensor("wte", {50, 4});
    job_.AddTensor("scale", {});
    job_.AddTensor("empty", {0, 4});
    job_.AddTensor("frozen", {7}, /*frozen=*/true);
    job_.AddBuffer("mean", {3}, "F64", 24);
  }
  absl::StatusOr<PullResult> Pull(const PullOptions& options) {
    return PullJob(client_, options, Soon(), progress_);
  }
  absl::StatusOr<PushResult> Push(const std::string& path) {
    return PushJob(client_, path, choice_, Soon(), progress_);
  }
  static absl::Time Soon() { return runtime::SteadyNow() + absl::Seconds(30); }
  std::string Path(const std::string& name) const { return root_.path() + "/" + name; }
  // Files in the root but for the socket.
  std::vector<std::string> Files(const std::string& folder) const {
    runtime::UniqueFd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    std::vector<std::string> files = *runtime::ListDir(fd.get());
    files.erase(std::remove(files.begin(), files.end(), "s0.sock"), files.end());
    return files;
  }
  std::string Stored(const Checkpoint& checkpoint, const std::string& name) {
    const formats::CheckpointTensor* t = checkpoint.Find(name);
    EXPECT_NE(t, nullptr) << name;
    if (t == nullptr) return "";
    std::string bytes(t->entry->bytes(), '\0');
    EXPECT_TRUE(checkpoint.Read(name, 0, absl::MakeSpan(&bytes[0], bytes.size())).ok());
    return bytes;
  }
  void ExpectWhole(const std::string& path, bool with_optimizer) {
    absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(path);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    for (const auto& [key, bytes] : job_.values) {
      const auto& [plane, name] = key;
      const bool weights = plane == "param" || plane == "buffer";
      if (weights) {
        EXPECT_EQ(Stored(**checkpoint, name), bytes) << name;
      } else if (with_optimizer) {
        EXPECT_EQ(Stored(**checkpoint, plane + "/" + name), bytes) << name;
      }
    }
    EXPECT_EQ((*checkpoint)->tensors().size(), with_optimizer ? job_.values.size() : 5);
  }

  runtime::TestRoot root_{"/tmp"};
  FakeJob job_{root_.path() + "/s0.sock"};
  rpc::JobClient client_{{job_.server.endpoint()}, {}};
  Progress progress_{false};
  PushChoice choice_;
};

// What a push delivered: manifest and bytes, if it was committed.
struct Pushed {
  v1::ImportManifest manifest;
  std::string bytes;
  bool committed = false;
  bool partial = false;
};

auto Receive(Pushed* pushed) {
  return [pushed](const std::function<bool(v1::PushRequest*)>& read, v1::PushResponse* out) {
    *pushed = Pushed();
    v1::PushRequest message;
    while (read(&message)) {
      if (message.has_begin()) {
        pushed->manifest = message.begin().manifest();
        pushed->partial = message.begin().partial();
      }
      if (message.has_commit()) pushed->committed = true;
      if (!message.has_chunk()) continue;
      EXPECT_EQ(message.chunk().offset(), pushed->bytes.size());
      EXPECT_EQ(message.chunk().crc32c(), runtime::Crc32c(message.chunk().data()));
      pushed->bytes += message.chunk().data();
    }
    out->set_step(7);
    return absl::OkStatus();
  };
}

TEST_F(TransferTest, PullsWeightsIntoOneFile) {
  absl::StatusOr<PullResult> result = Pull({Path("m.safetensors")});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->step, 101);
  EXPECT_EQ(result->tensors, 5);
  EXPECT_THAT(result->files, ElementsAre(Path("m.safetensors")));
  EXPECT_THAT(job_.planes, ElementsAre("param", "buffer"));
  EXPECT_THAT(job_.released, ElementsAre(1));
  EXPECT_THAT(Files(root_.path()), ElementsAre("m.safetensors"));
  ExpectWhole(Path("m.safetensors"), false);
  absl::StatusOr<std::unique_ptr<formats::SafetensorsReader>> reader =
      formats::SafetensorsReader::Open(Path("m.safetensors"));
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ((*reader)->header().metadata.at("sherd_step"), "101");
  EXPECT_EQ((*reader)->header().metadata.at("format"), "pt");
}

TEST_F(TransferTest, PullsEverythingIntoAFolderOfShards) {
  PullOptions options;
  options.path = Path("out/");
  options.with_optimizer = true;
  options.max_shard_bytes = 900;
  absl::StatusOr<PullResult> result = Pull(options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_GT(result->files.size(), 2);
  EXPECT_EQ(result->files.back(), Path("out/model.safetensors.index.json"));
  EXPECT_THAT(job_.planes, ElementsAre("param", "buffer", "exp_avg"));
  ExpectWhole(Path("out"), true);
}

// Every format holds the same, and is pushed back the same.
TEST_F(TransferTest, PullsAndPushesOtherFormats) {
  PullOptions torch;
  torch.path = Path("m.pt");
  torch.format = PullFormat::kTorch;
  PullOptions deepspeed;
  deepspeed.path = Path("run");
  deepspeed.format = PullFormat::kDeepSpeed;
  for (const bool with_optimizer : {false, true}) {
    torch.with_optimizer = with_optimizer;
    absl::StatusOr<PullResult> result = Pull(torch);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_THAT(result->files, ElementsAre(Path("m.pt")));
    EXPECT_THAT(Files(root_.path()), ElementsAre("m.pt"));
    ExpectWhole(Path("m.pt"), with_optimizer);
  }
  absl::StatusOr<PullResult> result = Pull(deepspeed);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->files, ElementsAre(Path("run/global_step103"), Path("run/latest_universal")));
  EXPECT_THAT(job_.planes, ElementsAre("param", "buffer", "exp_avg"));
  EXPECT_THAT(Files(Path("run")), ElementsAre("global_step103", "latest_universal"));
  EXPECT_THAT(Files(Path("run/global_step103/zero")),
              ElementsAre("empty", "optimizer_state.pt", "scale", "wte"));
  ExpectWhole(Path("run"), true);
  for (const std::string& path : {Path("m.pt"), Path("run"), Path("run/global_step103")}) {
    Pushed pushed;
    job_.server.push = Receive(&pushed);
    choice_.optimizer = PushChoice::Optimizer::kRequired;
    ASSERT_TRUE(Push(path).ok()) << path;
    std::string expected;
    for (const auto& t : pushed.manifest.tensors()) {
      expected += job_.values.at({t.tensor().plane(), t.tensor().name()});
    }
    EXPECT_EQ(pushed.manifest.tensors_size(), 10) << path;
    EXPECT_EQ(pushed.bytes, expected) << path;
  }
}

TEST_F(TransferTest, AFolderAppearsWholeOrNotAtAll) {
  PullOptions options;
  options.path = Path("run");
  options.format = PullFormat::kDeepSpeed;
  const auto refused = [&](const std::string& why) {
    EXPECT_THAT(std::string(Pull(options).status().message()), HasSubstr(why));
  };
  job_.before_pull = [&](const v1::PullRequest& r) {
    return r.offset() > 0 ? absl::PermissionDeniedError("not yours") : absl::OkStatus();
  };
  job_.most_chunks = 3;
  refused("not yours");
  EXPECT_THAT(Files(root_.path()), ElementsAre());
  // What a killed pull left is in nobody's way.
  ASSERT_EQ(::mkdir(Path("run").c_str(), 0700), 0);
  ASSERT_EQ(::mkdir(Path("run/.global_step102.partial").c_str(), 0700), 0);
  std::ofstream(Path("run/.global_step102.partial/old")) << "old";
  job_.before_pull = nullptr;
  job_.most_chunks = 1 << 30;
  ASSERT_TRUE(Pull(options).ok());
  EXPECT_THAT(Files(Path("run")), ElementsAre("global_step102", "latest_universal"));
  ASSERT_EQ(::mkdir(Path("run/global_step103").c_str(), 0700), 0);
  refused("global_step103 exists");
  options.path = Path("file");
  std::ofstream(options.path) << "file";
  refused("is no folder");
}

TEST_F(TransferTest, PushesInPart) {
  ASSERT_TRUE(Pull({Path("m.safetensors")}).ok());
  job_.AddTensor("more", {1});
  job_.tensors.erase(job_.tensors.begin() + 1);  // scale
  Pushed pushed;
  job_.server.push = Receive(&pushed);
  EXPECT_FALSE(Push(Path("m.safetensors")).ok());
  choice_.partial = true;
  absl::StatusOr<PushResult> result = Push(Path("m.safetensors"));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(pushed.committed);
  EXPECT_TRUE(pushed.partial);
  EXPECT_EQ(result->tensors, 3);
  EXPECT_EQ(result->missing, 1);
  EXPECT_EQ(result->left_over, 1);
  choice_.optimizer = PushChoice::Optimizer::kRequired;
  EXPECT_FALSE(Push(Path("m.safetensors")).ok());
}

TEST_F(TransferTest, ResumesAfterABreak) {
  int pulls = 0;
  job_.before_pull = [&](const v1::PullRequest&) {
    return ++pulls < 3 ? absl::UnavailableError("killed") : absl::OkStatus();
  };
  absl::StatusOr<PullResult> result = Pull({Path("m.safetensors")});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->resumed, 2);
  EXPECT_EQ(result->restarted, 0);
  ExpectWhole(Path("m.safetensors"), false);
}

TEST_F(TransferTest, StartsOverWithANewSnapshotWhenItsOwnIsLost) {
  job_.before_pull = [&](const v1::PullRequest& request) {
    return request.snapshot_id() == 1 ? absl::NotFoundError("no snapshot 1") : absl::OkStatus();
  };
  ::testing::internal::CaptureStderr();
  absl::StatusOr<PullResult> result = Pull({Path("m.safetensors")});
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("starting over"));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->step, 102);
  EXPECT_EQ(result->restarted, 1);
  EXPECT_THAT(job_.released, ElementsAre(1, 2));
  ExpectWhole(Path("m.safetensors"), false);
}

TEST_F(TransferTest, LeavesNothingAfterAnError) {
  job_.before_pull = [&](const v1::PullRequest&) { return absl::PermissionDeniedError("not yours"); };
  EXPECT_EQ(Pull({Path("m.safetensors")}).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(Pull({Path("new/")}).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(Files(root_.path()), ElementsAre());
  EXPECT_THAT(job_.released, ElementsAre(1, 2));
  EXPECT_FALSE(Pull({Path("none/m.safetensors")}).ok());
  EXPECT_FALSE(Pull({""}).ok());
}

TEST_F(TransferTest, AnErrorKeepsTheFileOfBefore) {
  std::ofstream(Path("m.safetensors")) << "precious";
  job_.before_pull = [&](const v1::PullRequest&) { return absl::PermissionDeniedError("not yours"); };
  EXPECT_FALSE(Pull({Path("m.safetensors")}).ok());
  std::string text;
  std::ifstream(Path("m.safetensors")) >> text;
  EXPECT_EQ(text, "precious");
}

TEST_F(TransferTest, PushesWhatWasPulled) {
  for (const bool with_optimizer : {false, true}) {
    PullOptions options;
    options.path = Path("m.safetensors");
    options.with_optimizer = with_optimizer;
    ASSERT_TRUE(Pull(options).ok());
    Pushed pushed;
    job_.server.push = Receive(&pushed);
    absl::StatusOr<PushResult> result = Push(Path("m.safetensors"));
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->step, 7);
    EXPECT_EQ(result->skipped_buffers, 1);
    EXPECT_TRUE(pushed.committed);
    EXPECT_EQ(pushed.manifest.tensors_size(), with_optimizer ? 10 : 4);
    std::string expected;
    for (const auto& t : pushed.manifest.tensors()) {
      expected += job_.values.at({t.tensor().plane(), t.tensor().name()});
    }
    EXPECT_EQ(pushed.bytes, expected);
  }
}

TEST_F(TransferTest, PushIsRepeatedWithItsToken) {
  ASSERT_TRUE(Pull({Path("m.safetensors")}).ok());
  std::vector<std::string> tokens;
  Pushed pushed;
  job_.server.push = [&](const std::function<bool(v1::PushRequest*)>& read, v1::PushResponse* out) {
    v1::PushRequest first;
    EXPECT_TRUE(read(&first));
    tokens.push_back(first.begin().token());
    if (tokens.size() == 1) return absl::UnavailableError("no coordinator at the moment");
    return Receive(&pushed)(read, out);
  };
  ASSERT_TRUE(Push(Path("m.safetensors")).ok());
  ASSERT_EQ(tokens.size(), 2);
  EXPECT_EQ(tokens[0], tokens[1]);
  EXPECT_TRUE(pushed.committed);
}

TEST_F(TransferTest, PushChecksBeforeItSends) {
  ASSERT_TRUE(Pull({Path("m.safetensors")}).ok());
  int pushes = 0;
  job_.server.push = [&](const std::function<bool(v1::PushRequest*)>&, v1::PushResponse*) {
    ++pushes;
    return absl::OkStatus();
  };
  const auto refused = [&](const std::string& why) {
    const absl::Status status = Push(Path("m.safetensors")).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  };
  job_.tensors[0].mutable_spec()->set_shape(0, 49);
  refused("tensor wte has shape 50x4 in the file and 49x4 in the job");
  job_.tensors[0].mutable_spec()->set_shape(0, 50);
  job_.AddTensor("more", {1});
  refused("the file lacks tensor more");
  job_.tensors.pop_back();
  job_.tensors.erase(job_.tensors.begin() + 1);
  refused("the job has no tensor scale");
  EXPECT_FALSE(Push(Path("none.safetensors")).ok());
  std::ofstream(Path("bad.safetensors")) << "no safetensors";
  EXPECT_FALSE(Push(Path("bad.safetensors")).ok());
  EXPECT_EQ(pushes, 0);
}

TEST(PlanPush, RefusesOtherTypesAndHalfAnOptimizer) {
  TensorList job;
  auto& t = job.tensors.emplace_back();
  t.mutable_spec()->set_name("w");
  t.mutable_spec()->add_shape(2);
  t.add_planes("param");
  t.add_planes("exp_avg");
  const auto plan = [&](std::vector<formats::TensorEntry> stored) { return PlanPush(job, stored, {}); };
  using formats::StoredType;
  EXPECT_TRUE(plan({{"w", StoredType::kBF16, {2}, 0, 4}}).ok());
  EXPECT_THAT(std::string(plan({{"w", StoredType::kI64, {2}, 0, 16}}).status().message()),
              HasSubstr("w is I64"));
  EXPECT_TRUE(plan({{"w", StoredType::kF32, {2}, 0, 8, /*flat=*/true}}).ok());
  EXPECT_FALSE(plan({{"w", StoredType::kF32, {3}, 0, 12, /*flat=*/true}}).ok());
  EXPECT_TRUE(
      plan({{"w", StoredType::kF32, {2}, 0, 8}, {"x", StoredType::kI64, {}, 0, 8, false, /*optional=*/true}})
          .ok());
  EXPECT_TRUE(plan({{"w", StoredType::kF32, {2}, 0, 8},
                    {"exp_avg/w", StoredType::kF32, {2}, 8, 16},
                    {"step/w", StoredType::kF32, {}, 16, 20}})
                  .ok());
  EXPECT_THAT(
      std::string(plan({{"w", StoredType::kF32, {2}, 0, 8}, {"exp_avg/w", StoredType::kF32, {2}, 8, 16}})
                      .status()
                      .message()),
      HasSubstr("lacks tensor step/w"));
}

TEST(PlanPull, RefusesNamesThatMeet) {
  TensorList job;
  for (const char* name : {"w", "exp_avg/w"}) {
    auto& t = job.tensors.emplace_back();
    t.mutable_spec()->set_name(name);
    t.add_planes("param");
    t.add_planes("exp_avg");
  }
  PullWish wish;
  wish.max_file_bytes = 1 << 20;
  wish.stem = "model";
  EXPECT_TRUE(PlanPull(job, wish).ok());
  wish.with_optimizer = true;
  EXPECT_EQ(PlanPull(job, wish).status().code(), absl::StatusCode::kInvalidArgument);
  wish.format = PullFormat::kTorch;
  EXPECT_TRUE(PlanPull(job, wish).ok());
  wish.format = PullFormat::kDeepSpeed;
  EXPECT_EQ(PlanPull(job, wish).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace sherd::cli
