#include "runtime/net_address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {
namespace {

const sockaddr_in& V4(const sockaddr_storage& s) { return reinterpret_cast<const sockaddr_in&>(s); }
const sockaddr_in6& V6(const sockaddr_storage& s) { return reinterpret_cast<const sockaddr_in6&>(s); }

absl::Status NotHostPort(absl::string_view text, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" is not HOST:PORT: ", why));
}

std::string Bracketed(const std::string& host) {
  return absl::StrContains(host, ':') ? absl::StrCat("[", host, "]") : host;
}

bool IsLinkLocal(const sockaddr* address) {
  return address->sa_family == AF_INET6 &&
         IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
}

socklen_t SizeOf(int family) { return family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6); }

}  // namespace

std::string HostPort::ToString() const { return absl::StrCat(Bracketed(host), ":", port); }

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos) return NotHostPort(text, "it has no port");
  absl::string_view host = text.substr(0, colon);
  const absl::string_view digits = text.substr(colon + 1);
  if (absl::StartsWith(host, "[") && absl::EndsWith(host, "]") && host.size() > 2) {
    host = host.substr(1, host.size() - 2);
  } else if (absl::StrContains(host, ':')) {
    return NotHostPort(text, "write an address of IPv6 in brackets, as [::1]:4711");
  }
  if (host.empty()) return NotHostPort(text, "it names no host");
  if (host.size() > 253 || std::any_of(host.begin(), host.end(), [](char c) {
        return !absl::ascii_isgraph(static_cast<unsigned char>(c)) || c == '[' || c == ']' || c == '/';
      })) {
    return NotHostPort(text, "no host has such a name");
  }
  uint32_t port = 0;
  const bool number = !digits.empty() && std::all_of(digits.begin(), digits.end(), absl::ascii_isdigit);
  if (!number || !absl::SimpleAtoi(digits, &port) || port > 65535)
    return NotHostPort(text, "the port is a number from 0 to 65535");
  return HostPort{std::string(host), static_cast<uint16_t>(port)};
}

SocketAddress::SocketAddress(const sockaddr* address, socklen_t size)
    : size_(std::min<socklen_t>(size, sizeof(storage_))) {
  std::memcpy(&storage_, address, size_);
}

uint16_t SocketAddress::port() const {
  return ntohs(family() == AF_INET6 ? V6(storage_).sin6_port : V4(storage_).sin_port);
}

void SocketAddress::set_port(uint16_t port) {
  // Both families have it at one place.
  static_assert(offsetof(sockaddr_in, sin_port) == offsetof(sockaddr_in6, sin6_port), "");
  reinterpret_cast<sockaddr_in&>(storage_).sin_port = htons(port);
}

bool SocketAddress::IsLoopback() const {
  if (family() == AF_INET) return ntohl(V4(storage_).sin_addr.s_addr) >> 24 == 127;
  return family() == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&V6(storage_).sin6_addr);
}

bool SocketAddress::IsAny() const {
  if (family() == AF_INET) return V4(storage_).sin_addr.s_addr == htonl(INADDR_ANY);
  return family() == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&V6(storage_).sin6_addr);
}

std::string SocketAddress::host() const {
  char text[INET6_ADDRSTRLEN] = "";
  const void* bytes = family() == AF_INET6 ? static_cast<const void*>(&V6(storage_).sin6_addr)
                                           : static_cast<const void*>(&V4(storage_).sin_addr);
  if (size_ == 0 || ::inet_ntop(family(), bytes, text, sizeof(text)) == nullptr) return "no address";
  return text;
}

std::string SocketAddress::ToString() const { return absl::StrCat(Bracketed(host()), ":", port()); }

absl::StatusOr<std::vector<SocketAddress>> Resolve(const HostPort& at) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(at.host.c_str(), nullptr, &hints, &found);
  if (error != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot resolve ", at.ToString(), ": ", ::gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, ::freeaddrinfo);
  std::vector<SocketAddress> addresses;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    if (a->ai_family != AF_INET && a->ai_family != AF_INET6) continue;
    addresses.emplace_back(a->ai_addr, a->ai_addrlen);
    addresses.back().set_port(at.port);
  }
  if (addresses.empty())
    return absl::InvalidArgumentError(absl::StrCat(at.ToString(), " has no address of IPv4 or IPv6"));
  return addresses;
}

absl::StatusOr<SocketAddress> ResolveOne(const HostPort& at) {
  absl::StatusOr<std::vector<SocketAddress>> all = Resolve(at);
  if (!all.ok()) return all.status();
  return all->front();
}

absl::StatusOr<SocketAddress> InterfaceAddress(absl::string_view interface) {
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return absl::ErrnoToStatus(errno, "cannot list network interfaces");
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, ::freeifaddrs);
  std::set<std::string> names;
  absl::optional<SocketAddress> v6;
  for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
    names.insert(i->ifa_name);
    if (interface != i->ifa_name || i->ifa_addr == nullptr) continue;
    const int family = i->ifa_addr->sa_family;
    if (family == AF_INET) return SocketAddress(i->ifa_addr, SizeOf(family));
    if (family == AF_INET6 && !IsLinkLocal(i->ifa_addr) && !v6.has_value())
      v6.emplace(i->ifa_addr, SizeOf(family));
  }
  if (v6.has_value()) return *v6;
  return absl::NotFoundError(
      absl::StrCat("interface \"", interface, "\" ",
                   names.count(std::string(interface)) != 0 ? "has no address" : "does not exist",
                   "; there are ", absl::StrJoin(names, ", ")));
}

absl::StatusOr<SocketAddress> AddressTowards(const SocketAddress& remote) {
  UniqueFd fd(::socket(remote.family(), SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd.ok()) return absl::ErrnoToStatus(errno, "socket");
  SocketAddress to = remote;
  if (to.port() == 0) to.set_port(9);  // any: connecting a datagram socket only looks the route up
  sockaddr_storage mine = {};
  socklen_t size = sizeof(mine);
  if (::connect(fd.get(), to.get(), to.size()) != 0 ||
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&mine), &size) != 0) {
    return absl::UnavailableError(absl::StrCat("there is no route to ", remote.host(), " (",
                                               std::strerror(errno),
                                               "): check the address, or say --interface"));
  }
  SocketAddress address(reinterpret_cast<const sockaddr*>(&mine), size);
  address.set_port(0);
  return address;
}

absl::StatusOr<SocketAddress> ChooseAddress(const AddressSources& sources) {
  if (!sources.advertise.empty()) {
    absl::StatusOr<HostPort> at = ParseHostPort(sources.advertise);
    // A host alone, an address of IPv6 without brackets too.
    if (!at.ok()) at = ParseHostPort(absl::StrCat(Bracketed(sources.advertise), ":0"));
    if (!at.ok())
      return absl::InvalidArgumentError(
          absl::StrCat("--advertise ", sources.advertise, " is neither HOST nor HOST:PORT"));
    absl::StatusOr<SocketAddress> address = ResolveOne(*at);
    if (!address.ok()) return address.status();
    if (address->IsAny()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--advertise ", sources.advertise,
                       " stands for all addresses: name one that the others can reach"));
    }
    return address;
  }
  if (!sources.interface.empty()) return InterfaceAddress(sources.interface);
  if (sources.towards.has_value()) return AddressTowards(*sources.towards);
  return absl::FailedPreconditionError(
      "nothing says at which address the other hosts reach this one: say --advertise or --interface");
}

absl::Status CheckMayListen(const SocketAddress& address, bool allow_remote) {
  if (allow_remote || address.IsLoopback()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("cannot listen on ", address.ToString(),
                   ": it can be reached from other hosts; use 127.0.0.1, or say --allow-remote"));
}

}  // namespace sherd::runtime
