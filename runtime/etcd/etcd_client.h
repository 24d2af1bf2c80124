// Calls to a cluster of etcd servers: goes from one server to the next until one answers.
//
//   EtcdClient client(EtcdClient::Options{{"10.0.0.1:2379", "10.0.0.2:2379"}});
//   absl::Status s = client.Call("read a key", [&](EtcdClient::Server& etcd, grpc::ClientContext* context) {
//     return etcd.kv->Range(context, request, &response);
//   });
//
// A server that does not answer soon (it is stopped, cut off, or without a leader) is left for the next one.
// A call may then have taken effect although nobody said so, and is made again: so only calls may be made
// that can be repeated, or transactions whose comparisons fail the second time and say why.
#ifndef SHERD_RUNTIME_ETCD_ETCD_CLIENT_H_
#define SHERD_RUNTIME_ETCD_ETCD_CLIENT_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "runtime/clock.h"
#include "runtime/etcd/etcd.grpc.pb.h"
#include "runtime/mutex.h"

namespace sherd::runtime {

// Ends the calls that are made with it, from another thread. Thread-safe.
class EtcdCancel {
 public:
  // Now and for ever.
  void Cancel();
  bool cancelled() const;
  // Returns after `time`, or at once when cancelled: false.
  bool Sleep(absl::Duration time);
  // One call at a time. False: cancelled before. `context` is borrowed until Leave().
  bool Enter(grpc::ClientContext* context);
  void Leave();

 private:
  mutable Mutex mu_;
  CondVar changed_;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mu_) = nullptr;
};

// Thread-safe.
class EtcdClient {
 public:
  struct Options {
    std::vector<std::string> endpoints;           // HOST:PORT, at least one
    absl::Duration attempt = absl::Seconds(1);    // for which the first server asked is waited
    absl::Duration patience = absl::Seconds(10);  // for which calls go on trying
  };
  struct Server {
    std::string address;
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<etcdserverpb::KV::Stub> kv;
    std::unique_ptr<etcdserverpb::Watch::Stub> watch;
    std::unique_ptr<etcdserverpb::Lease::Stub> lease;
    std::unique_ptr<etcdserverpb::Maintenance::Stub> maintenance;
  };
  using Method = std::function<grpc::Status(Server& server, grpc::ClientContext* context)>;

  explicit EtcdClient(Options options);

  const Options& options() const { return options_; }
  // "10.0.0.1:2379,10.0.0.2:2379"
  std::string addresses() const;

  // Makes a call that may be repeated. `what` is for errors, as in "cannot read epoch/7". The context has its
  // deadline; it is another one for each server tried.
  //   UNAVAILABLE  no server has answered until `deadline`: says which did what
  //   CANCELLED    `cancel` (may be null)
  //   others       etcd's own, of an answer that would not change
  absl::Status Call(absl::string_view what, absl::Time deadline, EtcdCancel* cancel, const Method& method);
  // With options().patience.
  absl::Status Call(absl::string_view what, const Method& method) {
    return Call(what, SteadyNow() + options_.patience, nullptr, method);
  }

  // For streams: the server to use now, whether there is a connection to it (waits for one, a moment), and
  // what came of it.
  Server& current() const;
  bool Connect(const Server& server) const;
  void Answered();
  void Failed(const Server& server, absl::string_view why);

  // Why there is no answer at the moment, in words; empty while there is one. Never blocks. As of the last
  // call: whoever keeps a lease knows within seconds.
  std::string Trouble() const;

 private:
  const Options options_;
  const std::vector<std::unique_ptr<Server>> servers_;

  mutable Mutex mu_;
  size_t current_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time last_answer_ ABSL_GUARDED_BY(mu_);
  std::string last_failure_ ABSL_GUARDED_BY(mu_);  // empty: the last call was answered
};

// The end of the range of all keys that begin with `prefix` (not empty).
std::string EtcdPrefixEnd(std::string prefix);

// One comparison of a transaction: `key` was created at `revision` (0: is not there), or last changed then.
etcdserverpb::Compare EtcdCreatedAt(std::string key, int64_t revision);
etcdserverpb::Compare EtcdChangedAt(std::string key, int64_t revision);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_ETCD_ETCD_CLIENT_H_
