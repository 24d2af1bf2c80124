// A cluster of real etcd servers for a test: on free ports of the loopback, its data in memory, gone at the
// end.
//
//   if (!TestEtcd::Installed()) GTEST_SKIP() << "etcd is not installed";
//   TestEtcd etcd(3);
//   etcd.Kill(etcd.Leader());
#ifndef SHERD_RUNTIME_ETCD_TEST_ETCD_H_
#define SHERD_RUNTIME_ETCD_TEST_ETCD_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/child_process.h"
#include "runtime/etcd/etcd_client.h"
#include "runtime/test_root.h"

namespace sherd::runtime {

// For one thread, the one that lives longest.
class TestEtcd {
 public:
  static bool Installed();

  // Started, and answering.
  explicit TestEtcd(int servers);

  const std::vector<std::string>& endpoints() const { return endpoints_; }
  EtcdClient& client() { return *client_; }

  // Dead when it returns; its data stay.
  void Kill(int server);
  // Killed before; its address and data as then.
  void Start(int server);
  // Lives on, but does nothing and answers nobody.
  void Stop(int server);
  void Continue(int server);
  // Returns when some server answers.
  void AwaitAnswer();
  // The one that leads.
  int Leader();
  // Forgets all that was before now.
  void Compact();

 private:
  TestRoot root_{"/dev/shm"};
  std::vector<std::string> endpoints_, peers_;
  std::vector<std::optional<ChildProcess>> processes_;
  std::unique_ptr<EtcdClient> client_;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_ETCD_TEST_ETCD_H_
