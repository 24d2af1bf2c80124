// The epoch document: who takes part in a job, and which server stands in which slot, from one commit to the
// next. It is the commit point of membership: what is not in the newest document has not happened. The
// coordinator (core/membership.h) makes it, a MetaStore keeps it, everybody else only reads it.
//
// Values; thread-compatible.
#ifndef SHERD_CORE_EPOCH_DOC_H_
#define SHERD_CORE_EPOCH_DOC_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/chunked_list.h"
#include "core/host_map.h"
#include "core/types.h"

namespace sherd {

// One process of one host, for ever: a pid alone may be reused.
struct ProcessIdentity {
  int64_t pid = 0;     // > 0; 0: none
  uint64_t start = 0;  // when it started, in the host's own unit (/proc/PID/stat field 22 on Linux)
  friend bool operator==(const ProcessIdentity& a, const ProcessIdentity& b) {
    return a.pid == b.pid && a.start == b.start;
  }
  friend bool operator!=(const ProcessIdentity& a, const ProcessIdentity& b) { return !(a == b); }
};

// The server of one slot. The slot is the index in EpochDoc::servers.
struct ServerMember {
  std::string id;           // unique in the document; keeps its slot over restarts of its process
  std::string address;      // where its services listen
  std::string host;         // where `process` is a process
  ProcessIdentity process;  // who stands for it
  Incarnation incarnation;  // 1 for the first process in this slot, one more for each successor
};

// The trainer of one rank. The rank is the index in EpochDoc::trainers.
struct TrainerMember {
  Incarnation incarnation;  // 0: nobody has attached yet, and the rest means nothing
  ProcessIdentity process;
  std::string host;
  bool ready = false;  // attached, and not known to be dead or detached when this document was made
};

// A machine of a job that spans several. Its number is the index in EpochDoc::hosts.
struct HostMember {
  std::string name;     // unique; what `host` says of the servers and trainers there
  std::string address;  // where the other hosts reach it
  int32_t ranks = 0;    // of its trainers: consecutive, after those of the hosts before it
  int32_t servers = 0;  // that the job begins with there, at least 1
  friend bool operator==(const HostMember& a, const HostMember& b) {
    return a.name == b.name && a.address == b.address && a.ranks == b.ranks && a.servers == b.servers;
  }
};

// One generation of the membership.
struct EpochDoc {
  std::string job;
  Epoch epoch;         // 1, 2, 3, ...: one more than the document before
  std::string reason;  // what made it, for people: "server s1 came back to slot 1 as process 7.3"

  std::vector<HostMember> hosts;  // 2..kMaxHosts of them; empty: the job is on one host

  int32_t world_size = 0;  // W, 1..kMaxWorldSize; 0: no trainer has said yet
  // By rank. Those past world_size are joining, or a resize has let them go and they may not have exited yet.
  std::vector<TrainerMember> trainers;
  uint64_t layout_hash = 0;  // Layout::hash() that all trainers have; 0: not known yet
  Epoch trainers_epoch;      // in which a trainer last came or was replaced

  // In slot order. The first `owning_servers` own the blocks, evenly (core/partition.h); that alone is M.
  // Those past it have been given a slot by a resize that waits for the next step.
  ChunkedList<ServerMember> servers;
  int32_t owning_servers = 0;  // 1..servers.size()
  // Names the assignment in force: the epoch in which it was proposed (1 for the first).
  Epoch ranges_epoch;

  // An operation (resize or drain) is under way while desired_servers differs from owning_servers,
  // desired_trainers is set or `draining` is. At most one is.
  int32_t desired_servers = 0;    // M as last asked for
  int32_t desired_trainers = 0;   // W as asked for; 0: as it is
  Step desired_from_step;         // not before this one; 0: as soon as can be
  bool give_up_step = false;      // the resize does not wait for the step in hand
  bool trainers_resized = false;  // at some time: what a trainer says of W may be older than W
  std::string draining;           // id of a server whose slot is to be taken from it; empty: none
  std::string operation_request;  // token of the operation, or of the last one; empty if there was none
  // Names the assignment of desired_servers owners and desired_trainers ranks that is to take effect between
  // two steps; 0: none is proposed.
  Epoch proposed_epoch;

  bool operation_under_way() const {
    return desired_servers != owning_servers || desired_trainers != 0 || !draining.empty();
  }
  // W of the assignment that is proposed, or in force.
  int32_t proposed_world_size() const {
    return proposed_epoch.value() > 0 && desired_trainers != 0 ? desired_trainers : world_size;
  }
  // Places that are to have a trainer: those of the world and those that a resize asks for.
  int32_t wanted_trainers() const { return desired_trainers > world_size ? desired_trainers : world_size; }
};

// OK if `doc` could have been committed; DATA_LOSS naming the field and value if not. For documents that were
// stored.
absl::Status CheckEpochDoc(const EpochDoc& doc);

// The index of the host called `name`; -1: none is. On one host everybody is on host 0.
int HostIndex(const EpochDoc& doc, const std::string& name);
// The host of a slot, for ever: those that the job began with host by host, further ones in turn. So a slot
// whose server goes and comes again in a resize is where it was, and so is its page.
int HostOfSlot(const EpochDoc& doc, int slot);
// Where the first `servers` slots are. FAILED_PRECONDITION: a host would have none.
absl::StatusOr<HostMap> SlotHosts(const EpochDoc& doc, int servers);
// Where the ranks are. REQUIRES: CheckEpochDoc(doc), and world_size is known.
RankMap RankHosts(const EpochDoc& doc);

// "7.3": pid and start.
std::string Show(const ProcessIdentity& process);
// One line for logs and transcripts; hosts and addresses are left out.
std::string Show(const EpochDoc& doc);

}  // namespace sherd

#endif  // SHERD_CORE_EPOCH_DOC_H_
