// This host's connection to one other: dials it again and again if its index is smaller, or takes the
// connections it makes; one thread sends, one receives (server/host_outgoing.h, host_incoming.h).
//
//   HostPeer peer(memory, 0, options);       // dials host 0 at options.address()
//   HostPeer peer(memory, 1, options);       // peer.Take(link) for each that comes from host 1
//
// A lost connection loses nothing: the next one says everything anew. How it stands is written to the control
// page (links) for whoever waits, and told by Report(). Thread-safe.
#ifndef SHERD_SERVER_HOST_PEER_H_
#define SHERD_SERVER_HOST_PEER_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "proto/sherd/v1/cluster.pb.h"
#include "runtime/job_memory.h"
#include "runtime/link.h"
#include "runtime/mutex.h"
#include "server/host_frames.h"
#include "server/host_gather.h"

namespace sherd::server {

class HostPeer {
 public:
  struct Options {
    runtime::Secret secret;
    runtime::LinkAdmission* admission = nullptr;  // borrowed
    std::function<std::string()> address;         // of the peer, HOST:PORT; empty: not known yet
    runtime::SpinPolicy spin = runtime::SpinPolicy::None();
    HostGather* gather = nullptr;  // stage 3; borrowed
  };

  // `memory` is borrowed.
  HostPeer(runtime::JobMemory* memory, int peer, Options options);
  // Ends the connection.
  ~HostPeer();

  // A connection that the peer has made; it takes the place of one that there is.
  void Take(std::unique_ptr<runtime::Link> link);

  // Notes on the control page how the connection is. To be called ten times a second or so.
  void Look();
  int peer() const { return peer_; }
  v1::HostLink Report() const;

 private:
  void Run();
  void Dial();
  // The link is not used any more. False: the peer's end.
  bool EndServing(const std::shared_ptr<runtime::Link>& link);
  // Until it ends; why.
  absl::Status Serve(runtime::Link& link);
  absl::Status SendAll(runtime::Link& link, GatherRequests* requests);
  absl::Status ReceiveAll(runtime::Link& link, GatherRequests* requests);
  void TakeHello(uint16_t flags);
  void NoteProblem(const std::string& words);
  // The least incarnation that the peer's agent may have (ControlPage::LinkState).
  uint64_t Oldest() const { return memory_->control().links[peer_].oldest.load(std::memory_order_seq_cst); }
  void Fence();
  bool WaitsForLink() const;

  runtime::JobMemory* const memory_;
  const int peer_;
  const Options options_;
  HostBytes bytes_;

  mutable runtime::Mutex mu_;
  mutable runtime::CondVar changed_;
  std::shared_ptr<runtime::Link> link_ ABSL_GUARDED_BY(mu_);
  uint64_t serving_ ABSL_GUARDED_BY(mu_) = 0;  // the peer's incarnation; 0: nobody's frames are taken
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  // From the other side's first frame of the link being served.
  bool heard_hello_ ABSL_GUARDED_BY(mu_) = false, peer_initialized_ ABSL_GUARDED_BY(mu_) = false;
  std::string problem_ ABSL_GUARDED_BY(mu_) = "not connected yet";
  std::thread run_, dial_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_HOST_PEER_H_
