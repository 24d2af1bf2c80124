// The network of two hosts on one machine, for benchmarks: as root a namespace for each with a cable (veth)
// between them, whose rate can be limited; else both hosts are this machine's loopback.
//
//   HostNetwork network(/*loopback=*/false);
//   network.Enter(0);  ...start host 0's processes...  network.Leave();
//   network.Limit(1e9);                                   // bits a second, each way; 0: as fast as it goes
//
// Make it before anything starts threads. Thread-compatible; forked processes may Enter, too. Ends the
// program with a line on any error.
#ifndef SHERD_BENCH_HOST_NETWORK_H_
#define SHERD_BENCH_HOST_NETWORK_H_

#include <string>

#include "runtime/unique_fd.h"

namespace sherd::bench {

class HostNetwork {
 public:
  static constexpr int kHosts = 2;

  explicit HostNetwork(bool loopback);

  // Whether there is a cable, and whether its rate can be limited (by the program tc).
  bool cabled() const { return cabled_; }
  bool limitable() const { return limitable_; }
  std::string Address(int host) const;
  // A port there that nobody listens on now.
  int FreePort(int host) const;
  // This thread is in the host's network, and what it starts from now on; or in this machine's again.
  void Enter(int host) const;
  void Leave() const;
  // REQUIRES: limitable(), unless 0.
  void Limit(double bits_a_second) const;

 private:
  void LayCable(const int (&pids)[kHosts]);
  void Run(int host, const std::string& command) const;

  bool cabled_ = false, limitable_ = false;
  runtime::UniqueFd outside_, inside_[kHosts];
};

}  // namespace sherd::bench

#endif  // SHERD_BENCH_HOST_NETWORK_H_
