// Where hosts reach each other: parsing, resolving and choosing addresses, never by what a host calls itself.
//
//   absl::StatusOr<HostPort> first = ParseHostPort("[fd00::2]:4711");
//   absl::StatusOr<SocketAddress> to = ResolveOne(*first);
//   absl::StatusOr<SocketAddress> mine = ChooseAddress({advertise, interface, *to});  // both empty: by route
//
// An address is of IPv4 ("10.0.0.1:4711"), of IPv6 in brackets ("[fd00::2]:4711"), or a name ("node7:4711").
// Only names block, while they are resolved. Thread-safe.
#ifndef SHERD_RUNTIME_NET_ADDRESS_H_
#define SHERD_RUNTIME_NET_ADDRESS_H_

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"

namespace sherd::runtime {

struct HostPort {
  std::string host;  // without brackets
  uint16_t port = 0;
  // With brackets where they are needed.
  std::string ToString() const;
};

// INVALID_ARGUMENT: not HOST:PORT, quoted; the remedy for an IPv6 address without brackets.
absl::StatusOr<HostPort> ParseHostPort(absl::string_view text);

// An address of IPv4 or IPv6 with a port.
class SocketAddress {
 public:
  SocketAddress() = default;
  SocketAddress(const sockaddr* address, socklen_t size);

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage_); }
  socklen_t size() const { return size_; }
  int family() const { return storage_.ss_family; }
  uint16_t port() const;
  void set_port(uint16_t port);
  // 127.0.0.0/8 or ::1: only this host can reach it.
  bool IsLoopback() const;
  // 0.0.0.0 or ::, all interfaces: nobody can be told to connect there.
  bool IsAny() const;
  // Without the port: "10.0.0.1", "fd00::2".
  std::string host() const;
  // "10.0.0.1:4711", "[fd00::2]:4711".
  std::string ToString() const;

 private:
  sockaddr_storage storage_ = {};
  socklen_t size_ = 0;
};

// Every address of a name, the resolver's favourite first. INVALID_ARGUMENT: unknown, or it cannot be
// resolved.
absl::StatusOr<std::vector<SocketAddress>> Resolve(const HostPort& at);
absl::StatusOr<SocketAddress> ResolveOne(const HostPort& at);

// The address of a network interface: its first of IPv4, else its first of IPv6 that is not link-local.
// NOT_FOUND lists the interfaces there are.
absl::StatusOr<SocketAddress> InterfaceAddress(absl::string_view interface);

// The address of this host from which packets to `remote` leave, by the routing table; nothing is sent.
// UNAVAILABLE: there is no route.
absl::StatusOr<SocketAddress> AddressTowards(const SocketAddress& remote);

// What may say which of this host's addresses the other hosts are to use, best first. An empty string is not
// there.
struct AddressSources {
  std::string advertise;                  // --advertise: HOST, or HOST:PORT when another port leads here
  std::string interface;                  // --interface
  absl::optional<SocketAddress> towards;  // else by route towards the first host
};
// With the port of `advertise`, or 0. FAILED_PRECONDITION: nothing says. INVALID_ARGUMENT: `advertise` is
// none, or stands for all interfaces.
absl::StatusOr<SocketAddress> ChooseAddress(const AddressSources& sources);

// OK for a loopback address, and for any with `allow_remote`; INVALID_ARGUMENT names the address and how to
// allow it (--allow-remote).
absl::Status CheckMayListen(const SocketAddress& address, bool allow_remote);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_NET_ADDRESS_H_
