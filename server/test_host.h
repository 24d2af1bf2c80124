// One host of a job of several, of which all are in one process: for tests.
//
//   TestHost host(root.path(), /*index=*/1, /*hosts=*/3);
//   host.memory->...
#ifndef SHERD_SERVER_TEST_HOST_H_
#define SHERD_SERVER_TEST_HOST_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/job_spec.h"
#include "gtest/gtest.h"
#include "runtime/job_dir.h"
#include "runtime/job_memory.h"

namespace sherd::server {

// One rank a host; tensors of several blocks and of none, a scalar, and one that is not trained.
inline JobSpec SpecOfHosts(int hosts) {
  JobSpec spec;
  spec.job = "t";
  spec.layout = *Layout::Create({{{"w", {60, 50}}, {"b", {7}}, {"empty", {0, 3}}, {"scalar", {}}},
                                 {{"v", {11, 13, 17}}},
                                 {{"frozen", {900}, DType::kFloat32, 0, false}}});
  spec.groups = {""};
  spec.world_size = hosts;
  for (int h = 0; h < hosts && hosts > 1; ++h) spec.reduction.groups.push_back(1);
  return spec;
}

struct TestHost {
  TestHost(const std::string& root, int index, int hosts)
      : dir(*runtime::JobDir::Create(root, absl::StrCat("h", index))) {
    auto made = runtime::JobMemory::Create(&dir, SpecOfHosts(hosts), {index, hosts});
    EXPECT_TRUE(made.ok()) << made.status();
    memory = *std::move(made);
  }
  runtime::JobDir dir;
  std::unique_ptr<runtime::JobMemory> memory;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_TEST_HOST_H_
