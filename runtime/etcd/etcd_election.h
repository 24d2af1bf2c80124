// One candidacy in an election held in etcd: of the keys under the election's prefix, each stored under its
// candidate's lease, the one created first leads.
//
//   EtcdCandidacy c(client, "/sherd/gpt/.election/coordinator/", "s0 unix:/run/s0.sock", ttl, gained, lost);
//   if (std::optional<etcdserverpb::Compare> term = c.term()) ...      // guards a change of the leader's
//
// A leader that died on this host (its process is watched) is followed at once, by ending its lease; one that
// died elsewhere or is cut off from etcd, when its lease has ended. A leader that could not renew its lease
// in time has lost, knows it before etcd lets another lead, and stands again.
#ifndef SHERD_RUNTIME_ETCD_ETCD_ELECTION_H_
#define SHERD_RUNTIME_ETCD_ETCD_ELECTION_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/etcd/etcd_client.h"
#include "runtime/etcd/etcd_lease.h"
#include "runtime/mutex.h"

namespace sherd::runtime {

// Thread-safe.
class EtcdCandidacy {
 public:
  // `gained` and `lost` run by turns, on the candidacy's thread.
  EtcdCandidacy(std::shared_ptr<EtcdClient> client, std::string prefix, std::string identity,
                absl::Duration ttl, std::function<void()> gained, std::function<void()> lost);
  // Withdraws.
  ~EtcdCandidacy();

  // Holds as long as this leadership does; nullopt when there is none.
  std::optional<etcdserverpb::Compare> term() const;
  bool held() const { return term().has_value(); }

 private:
  void Run();
  // From standing to the end of the leadership, if it comes to that.
  absl::Status Term();
  absl::Status Stand(const std::string& key, int64_t lease, int64_t* created);
  // Returns when nobody is before it. ABORTED: its key has gone.
  absl::Status AwaitTurn(const std::string& key, int64_t created);
  // Returns when the candidate before has gone, or may have.
  absl::Status AwaitEnd(const etcdserverpb::KeyValue& before);
  bool stopped() const { return cancel_.cancelled(); }
  void Wake();

  const std::shared_ptr<EtcdClient> client_;
  const std::string prefix_, identity_;
  const absl::Duration ttl_;
  const std::function<void()> gained_, lost_;
  EtcdCancel cancel_;

  mutable Mutex mu_;
  CondVar changed_;
  bool woken_ ABSL_GUARDED_BY(mu_) = false;
  bool lease_lost_ ABSL_GUARDED_BY(mu_) = false;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  const EtcdLease* leading_ ABSL_GUARDED_BY(mu_) = nullptr;  // the lease of the leadership
  std::string key_ ABSL_GUARDED_BY(mu_);
  int64_t created_ ABSL_GUARDED_BY(mu_) = 0;

  std::thread thread_;
};

// The identity of who leads in the election of `prefix`. NOT_FOUND, also when the leader's process has died
// on this host. UNAVAILABLE.
absl::StatusOr<std::string> EtcdLeader(EtcdClient& client, const std::string& prefix, absl::Time deadline);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_ETCD_ETCD_ELECTION_H_
