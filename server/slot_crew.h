// Work that is split by slots, each part done by the server that holds the slot, all at once: what a save and
// a restore are to the coordinator. In a job of several hosts it is split by hosts: "slot" is then a host,
// and any server there does its part.
//
//   SlotCrew crew(context, coordinator, servers);
//   absl::Status s = crew.Run(part, deadline);         // part.remote, part.local
//
// Thread-compatible; Run blocks.
#ifndef SHERD_SERVER_SLOT_CREW_H_
#define SHERD_SERVER_SLOT_CREW_H_

#include <atomic>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "core/types.h"
#include "grpcpp/client_context.h"
#include "proto/sherd/v1/checkpoint.grpc.pb.h"
#include "runtime/mutex.h"
#include "server/other_hosts.h"
#include "server/service_context.h"

namespace sherd::server {

// How a slot's part is done. Both are called from several threads at once, each for another slot.
struct SlotWork {
  using Stub = v1::CheckpointService::Stub;
  // By RPC to the slot's server; UNAVAILABLE if that can not be reached or dies.
  std::function<absl::Status(Slot slot, int attempt, Stub& stub, grpc::ClientContext* context)> remote;
  // In this process: the slot's server is this one, or (stand_in) it does not answer.
  std::function<absl::Status(Slot slot, int attempt)> local;
  // Whether the part may be done here while the slot's own server might still be at it. Otherwise it is asked
  // again, or whoever has the slot after it, until the deadline. Another host's part is always done there, by
  // the same server or another one; a host that cannot be reached for ten seconds is given up.
  bool stand_in = false;
  // Asked from Run's thread about five times in a second; false ends everything (CANCELLED).
  std::function<bool()> go_on;
};

class SlotCrew {
 public:
  // All are borrowed. Parts are those of `servers` slots, whatever resizes happen meanwhile.
  SlotCrew(ServiceContext* context, Coordinator* coordinator, int servers)
      : context_(context), coordinator_(coordinator), servers_(servers) {}

  // The first error by slot, once all have ended; one of another host names it.
  absl::Status Run(const SlotWork& work, absl::Time deadline);

  // True once Run is to end: parts that this process does should look at it.
  bool stopping() const { return stop_.load(std::memory_order_relaxed); }

 private:
  absl::Status RunSlot(Slot slot, const SlotWork& work, absl::Time deadline);
  absl::Status RunHost(const OtherHosts& others, int host, const SlotWork& work, absl::Time deadline);
  // `*called`: whether a server was asked.
  absl::Status CallHost(const OtherHosts& others, int host, int attempt, const SlotWork& work,
                        absl::Time deadline, bool* called);
  // Cancels `client` when Run is to end, until Forget; CANCELLED: it is to end now.
  absl::Status Note(grpc::ClientContext* client);
  void Forget(grpc::ClientContext* client);
  absl::Status CallRemote(Slot slot, int attempt, const std::string& address, const SlotWork& work,
                          absl::Time deadline);
  // Of the slot's holder; empty if there is none at the moment.
  std::string AddressOf(Slot slot, bool* exists) const;

  ServiceContext* const context_;
  Coordinator* const coordinator_;
  const int servers_;
  std::atomic<bool> stop_{false};
  runtime::Mutex mu_;
  std::set<grpc::ClientContext*> calls_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_SLOT_CREW_H_
