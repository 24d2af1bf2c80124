// Why nobody answers at a socket of this host.
#ifndef SHERD_CLIENT_RPC_LISTENER_H_
#define SHERD_CLIENT_RPC_LISTENER_H_

#include <string>
#include <vector>

namespace sherd::rpc {

// "process 71, which listens at unix:/a/s0.sock, is stopped by a signal or a debugger (kill -CONT 71)", for
// each of `endpoints` of which that is so; else empty. Never blocks.
std::string StoppedListeners(const std::vector<std::string>& endpoints);

}  // namespace sherd::rpc

#endif  // SHERD_CLIENT_RPC_LISTENER_H_
