#include "bench/host_network.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace sherd::bench {
namespace {

// Where the programs ip and tc are, which a user's PATH may leave out.
constexpr const char* kPath = "PATH=$PATH:/usr/sbin:/sbin; ";

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "the network of two hosts: %s\n", why.c_str());
  std::_Exit(1);
}

runtime::UniqueFd OpenNamespace(const std::string& path) {
  runtime::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.ok()) Die(absl::StrCat(path, ": ", std::strerror(errno)));
  return fd;
}

// A process with a network of its own, which ends when the other end of `keep` is closed; -1: there is none.
int HoldNamespace(const int (&keep)[2]) {
  int ready[2];
  if (::pipe2(ready, O_CLOEXEC) != 0) Die(std::strerror(errno));
  const pid_t pid = ::fork();
  if (pid < 0) Die(std::strerror(errno));
  if (pid == 0) {
    ::close(keep[1]);
    const char made = ::unshare(CLONE_NEWNET) == 0 ? 1 : 0;
    char end;
    if (::write(ready[1], &made, 1) == 1 && made == 1) (void)!::read(keep[0], &end, 1);
    std::_Exit(0);
  }
  char made = 0;
  if (::read(ready[0], &made, 1) != 1) made = 0;
  ::close(ready[0]);
  ::close(ready[1]);
  if (made == 1) return pid;
  ::waitpid(pid, nullptr, 0);
  return -1;
}

}  // namespace

HostNetwork::HostNetwork(bool loopback) {
  if (loopback) return;
  int keep[2];
  if (::pipe2(keep, O_CLOEXEC) != 0) Die(std::strerror(errno));
  const int pids[kHosts] = {HoldNamespace(keep), HoldNamespace(keep)};
  if (pids[0] > 0 && pids[1] > 0) LayCable(pids);
  // The namespaces stay for as long as they are open here.
  ::close(keep[0]);
  ::close(keep[1]);
  for (const int pid : pids) {
    if (pid > 0) ::waitpid(pid, nullptr, 0);
  }
}

void HostNetwork::LayCable(const int (&pids)[kHosts]) {
  const std::string cable = absl::StrCat(kPath, "ip link add eth0 netns ", pids[0],
                                         " type veth peer name eth0 netns ", pids[1], " 2>/dev/null");
  if (std::system(cable.c_str()) != 0) return;
  outside_ = OpenNamespace("/proc/self/ns/net");
  for (int h = 0; h < kHosts; ++h) inside_[h] = OpenNamespace(absl::StrCat("/proc/", pids[h], "/ns/net"));
  cabled_ = true;
  limitable_ = std::system(absl::StrCat(kPath, "command -v tc >/dev/null").c_str()) == 0;
  for (int h = 0; h < kHosts; ++h) {
    Run(h, absl::StrCat("ip link set lo up && ip address add ", Address(h),
                        "/24 dev eth0 && ip link set eth0 up"));
  }
}

std::string HostNetwork::Address(int host) const {
  return cabled_ ? absl::StrCat("10.77.0.", host + 1) : "127.0.0.1";
}

int HostNetwork::FreePort(int host) const {
  Enter(host);
  runtime::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in at = {};
  at.sin_family = AF_INET;
  ::inet_pton(AF_INET, Address(host).c_str(), &at.sin_addr);
  socklen_t size = sizeof(at);
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&at), size) != 0 ||
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&at), &size) != 0)
    Die(absl::StrCat("no port at ", Address(host), ": ", std::strerror(errno)));
  Leave();
  return ntohs(at.sin_port);
}

void HostNetwork::Enter(int host) const {
  if (cabled_ && ::setns(inside_[host].get(), CLONE_NEWNET) != 0) Die(std::strerror(errno));
}

void HostNetwork::Leave() const {
  if (cabled_ && ::setns(outside_.get(), CLONE_NEWNET) != 0) Die(std::strerror(errno));
}

void HostNetwork::Run(int host, const std::string& command) const {
  Enter(host);
  const int status = std::system(absl::StrCat(kPath, command).c_str());
  Leave();
  if (status != 0) Die(absl::StrCat("this failed: ", command));
}

void HostNetwork::Limit(double bits_a_second) const {
  if (!limitable_ && bits_a_second > 0) Die("it cannot be limited");
  for (int h = 0; limitable_ && h < kHosts; ++h) {
    if (bits_a_second > 0) {
      Run(h, absl::StrCat("tc qdisc replace dev eth0 root tbf rate ", static_cast<int64_t>(bits_a_second),
                          "bit burst 512kb latency 100ms"));
    } else {
      Run(h, "tc qdisc del dev eth0 root 2>/dev/null || true");
    }
  }
}

}  // namespace sherd::bench
