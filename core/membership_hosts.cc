// MembershipState: the hosts of a job that spans several.
#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "core/job_spec.h"
#include "core/membership.h"
#include "core/partition.h"

namespace sherd {
namespace {

absl::Status AnotherHost(const HostMember& have, const HostMember& asked) {
  return absl::FailedPreconditionError(absl::StrCat(
      "host ", have.name, " joined with ", have.ranks, " ranks and ", have.servers, " servers, now with ",
      asked.ranks, " and ", asked.servers, ": start it as before, or under another name"));
}

}  // namespace

absl::Status MembershipState::CheckHost(const HostJoined& e) const {
  if (!SeveralHosts()) {
    return absl::FailedPreconditionError(
        "this job is on one host; a job on several is told how many when its first host starts");
  }
  const HostMember& h = e.host;
  if (!IsValidName(h.name)) {
    return absl::InvalidArgumentError(absl::StrCat("host name \"", absl::CHexEscape(h.name.substr(0, 80)),
                                                   "\" is not 1..64 characters of [A-Za-z0-9._-]"));
  }
  if (h.address.empty() || h.ranks < 0 || h.servers < 1 || h.ranks > kMaxWorldSize ||
      h.servers > kMaxServers) {
    return absl::InvalidArgumentError(
        absl::StrCat("host ", h.name, " joins with address \"", absl::CHexEscape(h.address.substr(0, 80)),
                     "\", ", h.ranks, " ranks and ", h.servers, " servers: it needs an address, 0..",
                     kMaxWorldSize, " ranks and 1..", kMaxServers, " servers"));
  }
  if (e.index < -1 || e.index >= expected_hosts_) {
    return absl::InvalidArgumentError(
        absl::StrCat("host ", h.name, " asks for index ", e.index, ", not in 0..", expected_hosts_ - 1));
  }
  int64_t ranks = 0, servers = 0;
  for (size_t i = 0; i < hosts_.size(); ++i) {
    const HostMember& have = hosts_[i];
    if (have.name == h.name) {
      if (e.index >= 0 && e.index != static_cast<int32_t>(i)) {
        return absl::FailedPreconditionError(
            absl::StrCat("host ", h.name, " asks for index ", e.index, ", but it has index ", i));
      }
      return have.ranks == h.ranks && have.servers == h.servers ? absl::OkStatus() : AnotherHost(have, h);
    }
    ranks += have.ranks;
    servers += have.servers;
  }
  const bool full = std::none_of(hosts_.begin(), hosts_.end(), [](auto& have) { return have.name.empty(); });
  if (full || (e.index >= 0 && !hosts_[e.index].name.empty())) {
    return absl::AlreadyExistsError(
        full ? absl::StrCat("host ", h.name, " is one too many: all ", expected_hosts_, " have joined")
             : absl::StrCat("index ", e.index, " is host ", hosts_[e.index].name, "'s, not host ", h.name,
                            "'s"));
  }
  if (ranks + h.ranks > kMaxWorldSize || servers + h.servers > kMaxServers) {
    return absl::ResourceExhaustedError(
        absl::StrCat("with host ", h.name, " the job would have ", ranks + h.ranks, " ranks and ",
                     servers + h.servers, " servers; at most ", kMaxWorldSize, " and ", kMaxServers));
  }
  return absl::OkStatus();
}

void MembershipState::On(const HostJoined& e, Outcome& out) {
  if (absl::Status status = CheckHost(e); !status.ok()) return Refuse(e.request, std::move(status), out);
  const auto named = [&](const HostMember& h) { return h.name == e.host.name; };
  auto place = std::find_if(hosts_.begin(), hosts_.end(), named);
  if (place == hosts_.end() && e.index >= 0) place = hosts_.begin() + e.index;
  if (place == hosts_.end()) {
    place = std::find_if(hosts_.begin(), hosts_.end(), [](const HostMember& h) { return h.name.empty(); });
  }
  const bool moved = place->name == e.host.name && place->address != e.host.address;
  *place = e.host;
  if (!doc_.hosts.empty()) {  // it comes again
    doc_.hosts = hosts_;
    if (moved && formed()) Commit(absl::StrCat("host ", e.host.name, " is now at ", e.host.address), out);
    return Accept(e.request, absl::StrCat("host ", e.host.name, " has joined"), out);
  }
  std::string& waits = host_requests_[e.host.name];
  if (waits != e.request) Reply(waits, absl::AbortedError("the same host asked again"), out);
  waits = e.request;
  Note(absl::StrCat("host ", e.host.name, " joined as host ", place - hosts_.begin()), out);
  CompleteHosts(out);
}

void MembershipState::CompleteHosts(Outcome& out) {
  for (const HostMember& h : hosts_) {
    if (h.name.empty()) return;
  }
  doc_.hosts = hosts_;
  expected_servers_ = 0;
  for (const HostMember& h : hosts_) {
    expected_servers_ += h.servers;
    doc_.world_size += h.ranks;
  }
  doc_.trainers.resize(doc_.world_size);
  ranks_.resize(doc_.world_size);
  for (auto& [name, request] : host_requests_) Reply(request, absl::OkStatus(), out);
  host_requests_.clear();
}

bool MembershipState::MayForm() const {
  if (!SeveralHosts()) return static_cast<int64_t>(spares_.size()) >= expected_servers_;
  return !doc_.hosts.empty() && std::all_of(hosts_.begin(), hosts_.end(), [&](const HostMember& h) {
    return SparesOn(h.name) >= h.servers;
  });
}

std::string MembershipState::AwaitedToForm() const {
  const auto more = [](int64_t have, int64_t all, absl::string_view what) {
    return absl::StrCat(all - have, " more ", what, all - have == 1 ? "" : "s", " to join (", have, " of ",
                        all, ")");
  };
  if (!SeveralHosts()) return more(static_cast<int64_t>(spares_.size()), expected_servers_, "server");
  const auto come = std::count_if(hosts_.begin(), hosts_.end(), [](auto& h) { return !h.name.empty(); });
  if (doc_.hosts.empty()) return more(come, expected_hosts_, "host");
  for (const HostMember& h : hosts_) {
    const int64_t joined = SparesOn(h.name);
    if (joined < h.servers) return more(joined, h.servers, absl::StrCat("server of host ", h.name));
  }
  return "nothing";
}

MembershipState::Spares::iterator MembershipState::SpareOn(const std::string& host) {
  if (!SeveralHosts()) return spares_.begin();
  const auto there = spares_on_.find(host);
  return there == spares_on_.end() ? spares_.end() : spares_.find(*there->second.begin());
}

int64_t MembershipState::SparesOn(const std::string& host) const {
  const auto there = spares_on_.find(host);
  return there == spares_on_.end() ? 0 : static_cast<int64_t>(there->second.size());
}

std::string MembershipState::HostOfNextSlot(int64_t more) const {
  if (!SeveralHosts()) return "";
  return doc_.hosts[HostOfSlot(doc_, static_cast<int>(static_cast<int64_t>(doc_.servers.size()) + more))]
      .name;
}

bool MembershipState::SparesFor(int64_t slots) const {
  if (!SeveralHosts()) return slots <= static_cast<int64_t>(spares_.size());
  std::map<std::string, int64_t> asked;
  for (int64_t i = 0; i < slots; ++i) {
    const std::string host = HostOfNextSlot(i);
    if (++asked[host] > SparesOn(host)) return false;
  }
  return true;
}

absl::Status MembershipState::CheckStaysOn(const std::string& host, const std::string& id,
                                           const std::string& other) const {
  if (!SeveralHosts()) return absl::OkStatus();
  if (host != other) {
    return absl::FailedPreconditionError(absl::StrCat("server ", id, " is on host ", absl::CHexEscape(other),
                                                      ", but its slot is on host ", host,
                                                      ": start it there, or under another id"));
  }
  const bool known = std::any_of(hosts_.begin(), hosts_.end(), [&](auto& h) { return h.name == host; });
  if (known && !host.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "server ", id, " joins from host ", absl::CHexEscape(host), ", which has not joined this job"));
}

absl::Status MembershipState::CheckCanDrain(int slot) const {
  const ServerMember& member = doc_.servers[slot];
  if (doc_.owning_servers == 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("server ", member.id, " is the last one; start another before draining it"));
  }
  // The last slot goes, and its server takes over.
  const bool same_host = doc_.servers[doc_.owning_servers - 1].host == member.host;
  if (!SeveralHosts() || (same_host && SlotHosts(doc_, doc_.owning_servers - 1).ok()))
    return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("server ", member.id, " has nobody on host ", member.host,
                                                    " to take its place; start another there first"));
}

}  // namespace sherd
