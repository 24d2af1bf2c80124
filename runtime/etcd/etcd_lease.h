// A lease of etcd's, kept alive: keys that are stored with it vanish when whoever holds it is gone.
//
//   auto lease = EtcdLease::Grant(client, absl::Seconds(5), &cancel, deadline, [] { /* it has ended */ });
//   put.set_lease((*lease)->id());
//   if ((*lease)->alive()) ...                     // for certain, whatever this process slept through
#ifndef SHERD_RUNTIME_ETCD_ETCD_LEASE_H_
#define SHERD_RUNTIME_ETCD_ETCD_LEASE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/etcd/etcd_client.h"

namespace sherd::runtime {

// Thread-safe.
class EtcdLease {
 public:
  // `lost` is called once, from the lease's thread, when it may have ended. UNAVAILABLE, CANCELLED.
  static absl::StatusOr<std::unique_ptr<EtcdLease>> Grant(std::shared_ptr<EtcdClient> client,
                                                          absl::Duration ttl, EtcdCancel* cancel,
                                                          absl::Time deadline, std::function<void()> lost);
  // Gives it back, with its keys, if etcd answers within a second. Not to be called from `lost`.
  ~EtcdLease();

  int64_t id() const { return id_; }
  // False from the moment on at which etcd may let it end: its own count begins later than ours. Time in
  // which the process or the host slept counts.
  bool alive() const;

 private:
  EtcdLease(std::shared_ptr<EtcdClient> client, int64_t id, absl::Duration ttl, absl::Duration until,
            std::function<void()> lost);
  void Run();
  // Asks for another ttl. False: it has ended.
  bool Renew();

  const std::shared_ptr<EtcdClient> client_;
  const int64_t id_;
  const absl::Duration ttl_;
  const std::function<void()> lost_;
  EtcdCancel cancel_;
  std::atomic<int64_t> until_ns_;  // since boot
  std::thread thread_;
};

// Ends the lease `id`, and with it its keys. OK also when it had ended. UNAVAILABLE.
absl::Status RevokeEtcdLease(EtcdClient& client, int64_t id, absl::Time deadline);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_ETCD_ETCD_LEASE_H_
