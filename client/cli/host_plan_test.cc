#include "client/cli/host_plan.h"

#include <sys/stat.h>

#include <fstream>
#include <map>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sherd::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

GetEnv Variables(std::map<std::string, std::string> values) {
  return [values](const char* name) -> const char* {
    const auto it = values.find(name);
    return it == values.end() ? nullptr : it->second.c_str();
  };
}

std::string SecretFile() {
  const std::string path = ::testing::TempDir() + "/secret";
  std::ofstream(path) << "sixteen bytes or more of it";
  ::chmod(path.c_str(), 0600);
  return path;
}

HostFlags Rendezvous() {
  HostFlags flags;
  flags.rendezvous = "127.0.0.1:7000";
  flags.secret_file = SecretFile();
  return flags;
}

TEST(HostPlan, OneHostWithoutFlagsWhateverTheVariablesSay) {
  const auto plan = PlanHosts({}, Variables({{"SLURM_NNODES", "4"}, {"SLURM_NODEID", "3"}}));
  ASSERT_TRUE(plan.ok());
  EXPECT_FALSE(plan->place.several());
  EXPECT_TRUE(plan->ServerFlags(2).empty());
  EXPECT_EQ(plan->ServerPrefix(), "s");
}

TEST(HostPlan, VariablesSayWhichHostThisIs) {
  auto plan = PlanHosts(Rendezvous(), Variables({{"SLURM_NNODES", "4"}, {"SLURM_NODEID", "3"}}));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->place.index, 3);
  EXPECT_EQ(plan->place.count, 4);
  EXPECT_EQ(plan->ServerPrefix(), "h3-s");
  EXPECT_THAT(plan->ServerFlags(2),
              ElementsAre("--hosts", "4", "--host", "3", "--trainers", "2", "--data-address", "127.0.0.1",
                          "--secret-file", SecretFile(), "--first-host", "127.0.0.1:7000"));
  plan = PlanHosts(Rendezvous(), Variables({{"GROUP_WORLD_SIZE", "2"}, {"GROUP_RANK", "0"}}));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->place.index, 0);
  HostFlags flags = Rendezvous();
  std::swap(flags.rendezvous, flags.join);
  plan = PlanHosts(flags, Variables({}));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->place.index, 1) << "the only one that joins a first of two";
}

TEST(HostPlan, OneLineNamesTheValueAndTheRemedy) {
  const auto error = [](const HostFlags& flags, const GetEnv& getenv) {
    return std::string(PlanHosts(flags, getenv).status().message());
  };
  HostFlags flags = Rendezvous();
  EXPECT_THAT(error(flags, Variables({{"SLURM_NODEID", "x"}})), HasSubstr("SLURM_NODEID is \"x\""));
  EXPECT_THAT(error(flags, Variables({})), HasSubstr("--host-index 0..1"));
  flags.index = 5;
  EXPECT_THAT(error(flags, Variables({})), HasSubstr("--host-index 0..1"));
  flags.index = 0;
  flags.listen = flags.rendezvous;
  EXPECT_THAT(error(flags, Variables({})), HasSubstr("one of --listen"));
  flags.listen.clear();
  flags.rendezvous = "127.0.0.1:0";
  EXPECT_THAT(error(flags, Variables({})), HasSubstr("port 0"));
  flags = Rendezvous();
  flags.index = 1;
  flags.secret_file.clear();
  EXPECT_THAT(error(flags, Variables({})), HasSubstr("--secret-file"));
  flags = Rendezvous();
  flags.hosts = 1;
  EXPECT_THAT(error(flags, Variables({})), HasSubstr("--hosts 1"));
  flags = Rendezvous();
  std::swap(flags.rendezvous, flags.join);
  flags.index = 0;
  EXPECT_THAT(error(flags, Variables({})), HasSubstr("host 0 cannot --join"));
}

TEST(CheckReduceGroups, SaysWhatIsWrong) {
  EXPECT_TRUE(CheckReduceGroups("", 3, true).ok());
  EXPECT_TRUE(CheckReduceGroups("2,2", 4, false).ok());
  EXPECT_THAT(CheckReduceGroups("2,2", 4, true).message(), HasSubstr("each host's ranks are a group"));
  EXPECT_FALSE(CheckReduceGroups("2,2", 3, false).ok());
  EXPECT_FALSE(CheckReduceGroups("2,x", 4, false).ok());
}

}  // namespace
}  // namespace sherd::cli
