// The store of a job as a server of another host than the coordinator's sees it: the job's description by
// RPC, and the address of the first host in place of an election, in which such a server never stands.
//
//   JoinedStore store("gpt", "10.0.0.1:7000", &peers);
//   store.Get("job");               // the JobRecord; NOT_FOUND before a trainer has attached
//   store.Get("restore");           // the RestoreRecord; NOT_FOUND: it begins with rank 0's values
//   store.Leader("coordinator");    // "first-host 10.0.0.1:7000": whoever answers there passes calls on
//
// What it is not for says UNIMPLEMENTED. Thread-safe. Get blocks for an RPC, seconds at most.
#ifndef SHERD_SERVER_JOINED_STORE_H_
#define SHERD_SERVER_JOINED_STORE_H_

#include <memory>
#include <string>
#include <vector>

#include "runtime/meta_store.h"
#include "server/peers.h"

namespace sherd::server {

class JoinedStore final : public runtime::MetaStore {
 public:
  // `peers` is borrowed.
  JoinedStore(std::string job, std::string first_host, Peers* peers)
      : job_(std::move(job)), first_host_(std::move(first_host)), peers_(peers) {}

  absl::StatusOr<std::string> Get(absl::string_view key) override;
  absl::StatusOr<std::unique_ptr<Leadership>> Elect(absl::string_view name, absl::string_view identity,
                                                    std::function<void()> gained,
                                                    std::function<void()> lost) override;
  absl::StatusOr<std::string> Leader(absl::string_view name) override;
  absl::Status CreateIfAbsent(absl::string_view key, absl::string_view value) override;
  absl::Status Put(absl::string_view key, absl::string_view value) override;
  absl::Status Delete(absl::string_view key) override;
  absl::StatusOr<std::vector<std::string>> List(absl::string_view prefix) override;
  absl::StatusOr<std::unique_ptr<WatchHandle>> Watch(absl::string_view prefix,
                                                     WatchCallback callback) override;

 private:
  const std::string job_, first_host_;
  Peers* const peers_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_JOINED_STORE_H_
