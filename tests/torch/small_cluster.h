// A job of real shard servers (sherdd) and, as its trainers, forked children of the test.
//
//   SmallCluster cluster(/*servers=*/2);
//   std::vector<RankEnd> ends = cluster.RunRanks(2, [](Session& session, int life, std::string* result) {
//     ...                             // EXPECTs fail the rank, and so the test
//   });
//
// The destructor ends the servers and expects that they leave nothing in shared memory. The test's process
// itself must not use libtorch's or gRPC's threads before RunRanks: it forks.
#ifndef SHERD_TESTS_TORCH_SMALL_CLUSTER_H_
#define SHERD_TESTS_TORCH_SMALL_CLUSTER_H_

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "client/session.h"
#include "runtime/child_process.h"
#include "runtime/job_dir.h"

namespace sherd::tests {

// How a rank's last process ended.
struct RankEnd {
  int exit_code = 0;   // 128 + signal if it was killed
  std::string result;  // what it handed over
  std::string errors;  // its stderr
};

class SmallCluster {
 public:
  // Aborts the test on any failure to start.
  explicit SmallCluster(int servers);
  ~SmallCluster();
  SmallCluster(const SmallCluster&) = delete;
  SmallCluster& operator=(const SmallCluster&) = delete;

  // `life`: 0, and one more each time the rank's process was replaced because SIGKILL had ended it.
  using Body = std::function<void(Session& session, int life, std::string* result)>;
  std::vector<RankEnd> RunRanks(int world_size, const Body& body);

  // SIGKILL to a server, and a successor under its name.
  void ReplaceServer(int index);

 private:
  struct Rank {
    pid_t pid = -1;
    int life = 0;
    int result_fd = -1;
    int errors_fd = -1;
  };
  void Stop();
  void StartServer(int index);
  Rank StartRank(int rank, int world_size, int life, const Body& body);
  std::string Address(int index) const;

  const int servers_;
  std::optional<runtime::JobDir> dir_;
  std::vector<std::optional<runtime::ChildProcess>> processes_;
};

}  // namespace sherd::tests

#endif  // SHERD_TESTS_TORCH_SMALL_CLUSTER_H_
