// How another host than the first begins: once, by one server at a time, with its part of a checkpoint if
// there is one.
#include "server/host_begin.h"

#include <fcntl.h>

#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "proto/sherd/v1/job.pb.h"
#include "runtime/flock.h"
#include "runtime/memory_meta_store.h"
#include "runtime/test_root.h"
#include "runtime/unique_fd.h"
#include "server/restore_import.h"

namespace sherd::server {
namespace {

JobSpec Spec() {
  JobSpec spec;
  spec.job = "t";
  spec.layout = *Layout::Create({{{"w", {60, 50}}}});
  spec.groups = {""};
  spec.world_size = 2;
  spec.reduction.groups = {1, 1};
  return spec;
}

class HostBeginTest : public ::testing::Test {
 protected:
  HostBeginTest() {
    EXPECT_TRUE(first_.MakeMemory(store_, Spec()).ok());
    const absl::StatusOr<runtime::JobMemory*> made = home_.MakeMemory(store_, Spec());
    EXPECT_TRUE(made.ok()) << made.status();
    memory_ = *made;
  }
  bool begun() const { return memory_->control().host_begun.load() != 0; }
  absl::Status Begin(int servers = 2) {
    return BeginHost(home_, *memory_, servers, nullptr, [this] { return --looks_ >= 0; });
  }
  // Where the job began: to be said before anybody asks.
  void SayRestored(const std::string& directory) {
    v1::RestoreRecord record;
    record.set_directory(directory);
    record.set_tag("step-5");
    record.set_step(5);
    EXPECT_TRUE(store_.Put("restore", record.SerializeAsString()).ok());
  }

  runtime::TestRoot root_{"/dev/shm"};
  runtime::MemoryMetaStore store_{runtime::MakeMemoryMetaWorld()};
  runtime::JobDir first_dir_ = *runtime::JobDir::Create(root_.path(), "h0");
  runtime::JobDir dir_ = *runtime::JobDir::Create(root_.path(), "h1");
  JobHome first_{&first_dir_, &store_, &store_, {0, 2}};
  JobHome home_{&dir_, &store_, &store_, {1, 2}};
  runtime::JobMemory* memory_ = nullptr;
  int looks_ = 1 << 20;  // that whoever waits takes
};

TEST_F(HostBeginTest, AtOnceWithoutACheckpoint) {
  EXPECT_TRUE(Begin().ok());
  EXPECT_TRUE(begun());
  SayRestored(absl::StrCat(root_.path(), "/none"));
  EXPECT_TRUE(Begin().ok()) << "it has begun";
}

TEST_F(HostBeginTest, OneServerAtATime) {
  runtime::UniqueFd other(
      ::open(absl::StrCat(dir_.path(), "/beginning").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  ASSERT_EQ(runtime::Flock(other.get(), LOCK_EX), 0);
  looks_ = 2;
  EXPECT_TRUE(absl::IsCancelled(Begin()));
  EXPECT_FALSE(begun());
  other.Reset();  // it died
  EXPECT_TRUE(Begin().ok());
}

TEST_F(HostBeginTest, NamesItselfWhenItDoesNotSeeTheCheckpoint) {
  SayRestored(absl::StrCat(root_.path(), "/none"));
  EXPECT_TRUE(absl::IsUnavailable(Begin(/*servers=*/0)));
  const absl::Status blind = Begin();
  EXPECT_TRUE(absl::IsFailedPrecondition(blind)) << blind;
  EXPECT_TRUE(absl::StartsWith(blind.message(), "host 1 does not see the checkpoint: ")) << blind;
  EXPECT_FALSE(begun());
}

TEST(OnHostTest, SaysWhichHostOfSeveral) {
  EXPECT_TRUE(OnHost({1, 2}, absl::OkStatus()).ok());
  EXPECT_EQ(OnHost({0, 1}, absl::NotFoundError("x")), absl::NotFoundError("x"));
  EXPECT_EQ(OnHost({1, 2}, absl::DataLossError("x")), absl::DataLossError("host 1: x"));
}

}  // namespace
}  // namespace sherd::server
