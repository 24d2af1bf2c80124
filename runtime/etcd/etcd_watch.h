// Tells the changes of a range of keys in etcd, whatever happens to its servers meanwhile.
//
//   auto watch = EtcdWatch::Start(client, "/sherd/gpt/", EtcdPrefixEnd("/sherd/gpt/"), deadline,
//                                 [](const std::string& key) { ... });
//
// The watch goes on at the first revision that it has not told, at another server if its own does not answer
// (it asks for a sign of life every two seconds). If that revision was compacted away it lists the range and
// tells every key that was changed since, and those that are gone: what came and went in between, unseen by
// anybody, is not told.
#ifndef SHERD_RUNTIME_ETCD_ETCD_WATCH_H_
#define SHERD_RUNTIME_ETCD_ETCD_WATCH_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/etcd/etcd_client.h"

namespace sherd::runtime {

class EtcdWatch {
 public:
  // Runs on the watch's thread, one call at a time.
  using Tell = std::function<void(const std::string& key)>;

  // Tells what changes after this returns. UNAVAILABLE: no server answered until `deadline`.
  static absl::StatusOr<std::unique_ptr<EtcdWatch>> Start(std::shared_ptr<EtcdClient> client, std::string key,
                                                          std::string range_end, absl::Time deadline,
                                                          Tell tell);
  // Afterwards `tell` does not run and never will. Not to be called from it.
  ~EtcdWatch();

 private:
  EtcdWatch(std::shared_ptr<EtcdClient> client, std::string key, std::string range_end, Tell tell);
  // Reads which keys there are; tells those that changed since next_ if `told`.
  absl::Status List(absl::Time deadline, bool tell_changes);
  void Run();
  // One stream to one server, until it breaks: why.
  std::string Follow(EtcdClient::Server& server);
  // False: the stream is to be ended.
  bool Take(const etcdserverpb::WatchResponse& response, std::string* why);

  const std::shared_ptr<EtcdClient> client_;
  const std::string key_, range_end_;
  const Tell tell_;
  EtcdCancel cancel_;
  // The thread's, after Start.
  int64_t next_ = 0;  // first revision not told
  bool compacted_ = false;
  std::set<std::string> known_;
  std::thread thread_;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_ETCD_ETCD_WATCH_H_
