#include "client/rpc/endpoints.h"

#include <fcntl.h>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/job_dir.h"
#include "runtime/test_root.h"
#include "runtime/unique_fd.h"

namespace sherd::rpc {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

void Touch(const std::string& path) {
  runtime::UniqueFd fd(::open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  ASSERT_TRUE(fd.ok());
}

TEST(ParseEndpoints, TakesListsOfBothKinds) {
  EXPECT_THAT(*ParseEndpoints("unix:/a/b.sock,host:70, [::1]:80"),
              ElementsAre("unix:/a/b.sock", "host:70", "[::1]:80"));
}

TEST(ParseEndpoints, NamesWhatIsNone) {
  for (const char* bad :
       {"", ",", "unix:", "unix:a.sock", "host", ":80", "host:", "host:0", "host:65536", "host:x"}) {
    const absl::Status status = ParseEndpoints(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr("use unix:PATH or HOST:PORT")) << bad;
  }
  EXPECT_FALSE(ParseEndpoints("unix:/a,nonsense").ok());
  EXPECT_TRUE(ParseEndpoints("unix:/" + std::string(kMaxSocketPath - 1, 'x')).ok());
  EXPECT_FALSE(ParseEndpoints("unix:/" + std::string(kMaxSocketPath, 'x')).ok());
}

TEST(JobEndpoints, SortsServersByNumber) {
  runtime::TestRoot root;
  for (const char* name : {"s10.sock", "s2.sock", "s0.sock", "control"}) Touch(root.path() + "/" + name);
  const std::string base = "unix:" + root.path();
  EXPECT_THAT(*JobEndpoints(root.path()),
              ElementsAre(base + "/s0.sock", base + "/s2.sock", base + "/s10.sock"));
  EXPECT_EQ(JobEndpoints(root.path() + "/none").status().code(), absl::StatusCode::kNotFound);
}

TEST(FindEndpoints, FlagThenEnvironment) {
  runtime::TestRoot root;
  EXPECT_THAT(*FindEndpoints({"unix:/f", "unix:/e", root.path()}), ElementsAre("unix:/f"));
  EXPECT_THAT(*FindEndpoints({"", "unix:/e,unix:/g", root.path()}), ElementsAre("unix:/e", "unix:/g"));
  EXPECT_THAT(std::string(FindEndpoints({"", "bad", root.path()}).status().message()),
              HasSubstr("SHERD_ENDPOINT: \"bad\""));
}

TEST(FindEndpoints, TheOnlyLiveJob) {
  runtime::TestRoot root;
  EXPECT_EQ(FindEndpoints({"", "", root.path()}).status().code(), absl::StatusCode::kNotFound);
  std::string dead_path;
  {
    absl::StatusOr<runtime::JobDir> dead = runtime::JobDir::Create(root.path(), "old");
    ASSERT_TRUE(dead.ok()) << dead.status();
    Touch(dead->path() + "/s0.sock");
  }
  EXPECT_THAT(std::string(FindEndpoints({"", "", root.path()}).status().message()), HasSubstr("sherd gc"));

  absl::StatusOr<runtime::JobDir> one = runtime::JobDir::Create(root.path(), "one");
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(FindEndpoints({"", "", root.path()}).status().code(), absl::StatusCode::kNotFound)
      << "no socket yet";
  Touch(one->path() + "/s0.sock");
  EXPECT_THAT(*FindEndpoints({"", "", root.path()}), ElementsAre("unix:" + one->path() + "/s0.sock"));

  absl::StatusOr<runtime::JobDir> two = runtime::JobDir::Create(root.path(), "two");
  ASSERT_TRUE(two.ok()) << two.status();
  Touch(two->path() + "/s0.sock");
  const absl::Status several = FindEndpoints({"", "", root.path()}).status();
  EXPECT_EQ(several.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(several.message()), HasSubstr(absl::StrCat("unix:", one->path(), "/s0.sock")));
  EXPECT_THAT(std::string(several.message()), HasSubstr(absl::StrCat("unix:", two->path(), "/s0.sock")));
}

}  // namespace
}  // namespace sherd::rpc
