#include "core/epoch_doc.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/job_spec.h"
#include "core/partition.h"

namespace sherd {

namespace {

absl::Status CheckHosts(const EpochDoc& doc) {
  if (doc.hosts.empty()) return absl::OkStatus();
  const auto bad = [](auto... what) { return absl::DataLossError(absl::StrCat(what...)); };
  if (doc.hosts.size() == 1 || doc.hosts.size() > kMaxHosts)
    return bad("it has ", doc.hosts.size(), " hosts");
  std::set<std::string> names;
  int64_t ranks = 0;
  for (const HostMember& h : doc.hosts) {
    const std::string name = absl::CHexEscape(h.name);
    if (h.name.empty() || !names.insert(h.name).second) return bad("host \"", name, "\" is repeated");
    if (h.ranks < 0 || h.servers < 1 || h.address.empty()) {
      return bad("host ", name, " has ", h.ranks, " ranks, ", h.servers, " servers, address \"",
                 absl::CHexEscape(h.address), "\"");
    }
    ranks += h.ranks;
  }
  if (ranks != doc.world_size) return bad("its hosts have ", ranks, " ranks, world_size is ", doc.world_size);
  for (size_t m = 0; m < doc.servers.size(); ++m) {
    const std::string& host = doc.hosts[HostOfSlot(doc, static_cast<int>(m))].name;
    if (doc.servers[m].host == host) continue;
    return bad("server ", absl::CHexEscape(doc.servers[m].id), " is on host \"",
               absl::CHexEscape(doc.servers[m].host), "\" but its slot is on host ", absl::CHexEscape(host));
  }
  return SlotHosts(doc, doc.owning_servers).status();
}

}  // namespace

std::string Show(const ProcessIdentity& process) { return absl::StrCat(process.pid, ".", process.start); }

int HostIndex(const EpochDoc& doc, const std::string& name) {
  if (doc.hosts.empty()) return 0;
  const auto it =
      std::find_if(doc.hosts.begin(), doc.hosts.end(), [&](const HostMember& h) { return h.name == name; });
  return it == doc.hosts.end() ? -1 : static_cast<int>(it - doc.hosts.begin());
}

int HostOfSlot(const EpochDoc& doc, int slot) {
  if (doc.hosts.empty()) return 0;
  const int hosts = std::max(static_cast<int>(doc.hosts.size()), 1);
  for (int h = 0; h < static_cast<int>(doc.hosts.size()); ++h) {
    if (slot < doc.hosts[h].servers) return h;
    slot -= doc.hosts[h].servers;
  }
  return slot % hosts;
}

absl::StatusOr<HostMap> SlotHosts(const EpochDoc& doc, int servers) {
  if (doc.hosts.empty()) return HostMap::OneHost(servers);
  std::vector<int32_t> hosts, count(doc.hosts.size(), 0);
  for (int m = 0; m < servers; ++m) {
    hosts.push_back(HostOfSlot(doc, m));
    ++count[hosts.back()];
  }
  for (size_t h = 0; h < count.size(); ++h) {
    if (count[h] > 0) continue;
    return absl::FailedPreconditionError(absl::StrCat("with ", servers, " servers host ", doc.hosts[h].name,
                                                      " has none; every host needs one"));
  }
  return HostMap::Create(std::move(hosts));
}

RankMap RankHosts(const EpochDoc& doc) {
  std::vector<int32_t> ranks;
  for (const HostMember& h : doc.hosts) ranks.push_back(h.ranks);
  return RankMap(std::move(ranks), doc.world_size);
}

std::string Show(const EpochDoc& doc) {
  std::string hosts;
  for (const HostMember& h : doc.hosts) {
    absl::StrAppend(&hosts, hosts.empty() ? " hosts=[" : " ", h.name, ":", h.ranks, "+", h.servers);
  }
  if (!hosts.empty()) absl::StrAppend(&hosts, "]");
  std::vector<std::string> servers;
  for (const ServerMember& s : doc.servers) {
    servers.push_back(absl::StrCat(s.id, "=", Show(s.process), "#", s.incarnation.value()));
    if (!doc.hosts.empty()) absl::StrAppend(&servers.back(), "@", HostIndex(doc, s.host));
  }
  std::vector<std::string> trainers;
  for (const TrainerMember& t : doc.trainers) {
    if (static_cast<int32_t>(trainers.size()) == doc.world_size) trainers.push_back("|");
    trainers.push_back(t.incarnation.value() == 0 ? "-"
                                                  : absl::StrCat(Show(t.process), "#", t.incarnation.value(),
                                                                 t.ready ? "" : "(gone)"));
  }
  std::string operation;
  if (doc.operation_under_way()) operation = absl::StrCat(" operation=", doc.operation_request);
  if (doc.desired_trainers != 0) absl::StrAppend(&operation, " desired_trainers=", doc.desired_trainers);
  if (doc.give_up_step) absl::StrAppend(&operation, " give_up_step");
  if (doc.desired_from_step.value() != 0) {
    absl::StrAppend(&operation, " from_step=", doc.desired_from_step.value());
  }
  if (!doc.draining.empty()) absl::StrAppend(&operation, " draining=", doc.draining);
  if (doc.proposed_epoch.value() > 0)
    absl::StrAppend(&operation, " proposed_epoch=", doc.proposed_epoch.value());
  return absl::StrCat("epoch=", doc.epoch.value(), hosts, " servers=[", absl::StrJoin(servers, " "),
                      "] owning=", doc.owning_servers, " desired=", doc.desired_servers,
                      " ranges_epoch=", doc.ranges_epoch.value(), operation, " trainers=[",
                      absl::StrJoin(trainers, " "), "] trainers_epoch=", doc.trainers_epoch.value(),
                      " layout=", absl::Hex(doc.layout_hash), " \"", absl::CHexEscape(doc.reason), "\"");
}

absl::Status CheckEpochDoc(const EpochDoc& doc) {
  const auto bad = [&doc](auto... what) {
    return absl::DataLossError(absl::StrCat("epoch document ", doc.epoch.value(), " of job \"",
                                            absl::CHexEscape(doc.job), "\": ", what...));
  };
  if (doc.epoch.value() == 0) return bad("epoch is 0");
  const int64_t servers = static_cast<int64_t>(doc.servers.size());
  if (servers > kMaxServers) return bad("it has ", servers, " servers");
  if (doc.owning_servers < 1 || doc.owning_servers > servers) {
    return bad("owning_servers is ", doc.owning_servers, " of ", servers);
  }
  if (doc.desired_servers < 1 || doc.desired_servers > kMaxServers) {
    return bad("desired_servers is ", doc.desired_servers);
  }
  if (servers != doc.owning_servers && servers != doc.desired_servers) {
    return bad("it has ", servers, " servers, which is neither owning_servers ", doc.owning_servers,
               " nor desired_servers ", doc.desired_servers);
  }
  if (absl::Status s = CheckHosts(doc); !s.ok()) return bad(s.message());
  if (doc.world_size < 0 || doc.world_size > kMaxWorldSize ||
      static_cast<int64_t>(doc.trainers.size()) < doc.world_size || doc.trainers.size() > kMaxWorldSize) {
    return bad("world_size is ", doc.world_size, " with ", doc.trainers.size(), " trainers");
  }
  if (doc.desired_trainers < 0 || doc.desired_trainers > static_cast<int64_t>(doc.trainers.size()) ||
      (doc.desired_trainers != 0 && doc.desired_trainers == doc.world_size)) {
    return bad("desired_trainers is ", doc.desired_trainers, " with world_size ", doc.world_size, " and ",
               doc.trainers.size(), " places");
  }
  if (doc.ranges_epoch > doc.epoch || doc.trainers_epoch > doc.epoch) {
    return bad("ranges_epoch ", doc.ranges_epoch.value(), " or trainers_epoch ", doc.trainers_epoch.value(),
               " is later than the document");
  }
  const bool proposed = doc.proposed_epoch.value() > 0;
  const bool can_be_proposed = (doc.desired_servers != doc.owning_servers || doc.desired_trainers != 0) &&
                               servers >= doc.desired_servers;
  // Only new trainers may have to be waited for.
  const bool must_be_proposed = can_be_proposed && doc.desired_trainers <= doc.world_size;
  if ((proposed && !can_be_proposed) || (!proposed && must_be_proposed) || doc.proposed_epoch > doc.epoch) {
    return bad("proposed_epoch is ", doc.proposed_epoch.value(), " with ", doc.owning_servers,
               " owning servers, ", doc.desired_servers, " desired, ", servers, " in slots, ",
               doc.desired_trainers, " trainers desired");
  }
  std::set<std::string> ids;
  for (const ServerMember& s : doc.servers) {
    if (s.id.empty() || !ids.insert(s.id).second)
      return bad("server id \"", absl::CHexEscape(s.id), "\" is repeated");
    if (s.process.pid <= 0) return bad("server ", absl::CHexEscape(s.id), " has pid ", s.process.pid);
  }
  if (!doc.draining.empty() && doc.proposed_epoch.value() == 0 && ids.count(doc.draining) == 0) {
    return bad("draining names \"", absl::CHexEscape(doc.draining), "\", which has no slot");
  }
  for (const TrainerMember& t : doc.trainers) {
    if (t.incarnation.value() > 0 && t.process.pid <= 0) return bad("a trainer has pid ", t.process.pid);
  }
  return absl::OkStatus();
}

}  // namespace sherd
