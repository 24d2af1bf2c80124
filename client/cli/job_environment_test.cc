#include "client/cli/job_environment.h"

#include <sys/stat.h>

#include <fstream>
#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/job_dir.h"
#include "runtime/test_root.h"

namespace sherd::cli {
namespace {

using ::testing::HasSubstr;

void MakeProgram(const std::string& path, mode_t mode = 0755) {
  std::ofstream(path) << "#!/bin/sh\n";
  ASSERT_EQ(::chmod(path.c_str(), mode), 0);
}

TEST(JobEnvironment, DefaultJobNamesAreValid) {
  EXPECT_EQ(DefaultJobName("/usr/bin/train_gpt", 12), "train_gpt-12");
  for (const char* program :
       {"./a b\nc", "/", "", "x.py", "..", "a_very_long_name_of_a_program_that_trains_things"}) {
    EXPECT_TRUE(runtime::ValidateJobName(DefaultJobName(program, 4194304)).ok()) << program;
  }
}

TEST(JobEnvironment, FindsPrograms) {
  runtime::TestRoot root;
  const std::string bin = root.path() + "/bin", other = root.path() + "/other";
  ::mkdir(bin.c_str(), 0755);
  ::mkdir(other.c_str(), 0755);
  MakeProgram(other + "/train");
  EXPECT_EQ(*FindProgram("train", bin + ":" + other), other + "/train");
  EXPECT_EQ(*FindProgram(other + "/train", ""), other + "/train");
  EXPECT_THAT(std::string(FindProgram("train", bin).status().message()),
              HasSubstr("no program \"train\" in PATH"));
  EXPECT_EQ(FindProgram(bin + "/train", "").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(FindProgram(bin, "").ok()) << "a directory";
  EXPECT_FALSE(FindServerProgram(bin, other).ok());
  MakeProgram(other + "/sherdd");
  EXPECT_EQ(*FindServerProgram(bin, other), other + "/sherdd");
  MakeProgram(bin + "/sherdd");
  EXPECT_EQ(*FindServerProgram(bin, other), bin + "/sherdd");
}

TEST(JobEnvironment, TellsATrainerItsPlace) {
  TrainerPlace place;
  place.rank = 2;
  place.world_size = 3;
  place.master_address = "127.0.0.1";
  place.master_port = 1234;
  place.endpoints = {"unix:/a", "unix:/b"};
  place.job = "gpt";
  place.config = "/ds.json";
  place.cores = 8;
  place.reduce_groups = "2,1";
  place.first_rank = 2;
  place.local_world = 4;
  const auto find = [](const char* name) -> const char* {
    return std::string(name) == "MKL_NUM_THREADS" ? "5" : nullptr;
  };
  std::map<std::string, std::string> env;
  for (const auto& [name, value] : TrainerEnvironment(place, find))
    EXPECT_TRUE(env.emplace(name, value).second);
  EXPECT_EQ(env["RANK"], "2");
  EXPECT_EQ(env["WORLD_SIZE"], "3");
  EXPECT_EQ(env["LOCAL_RANK"], "0");
  EXPECT_EQ(env["LOCAL_WORLD_SIZE"], "4");
  EXPECT_EQ(env["MASTER_ADDR"], "127.0.0.1");
  EXPECT_EQ(env["MASTER_PORT"], "1234");
  EXPECT_EQ(env["SHERD_ENDPOINT"], "unix:/a,unix:/b");
  EXPECT_EQ(env["SHERD_JOB"], "gpt");
  EXPECT_EQ(env["SHERD_CONFIG"], "/ds.json");
  EXPECT_EQ(env["SHERD_REDUCE_GROUPS"], "2,1");
  EXPECT_EQ(env["OMP_NUM_THREADS"], "2");
  EXPECT_EQ(env.count("MKL_NUM_THREADS"), 0) << "the user's own stays";
  EXPECT_THAT(env["GLIBC_TUNABLES"], HasSubstr("mmap_threshold=4294967296"));
  place.cores = 1;
  for (const auto& [name, value] : TrainerEnvironment(place, find)) {
    if (name == "OMP_NUM_THREADS") {
      EXPECT_EQ(value, "1");
    }
  }
}

TEST(JobEnvironment, FreePortsAreNumbers) {
  EXPECT_GT(*FreePort(), 0);
  EXPECT_LT(*FreePort(), 65536);
}

}  // namespace
}  // namespace sherd::cli
