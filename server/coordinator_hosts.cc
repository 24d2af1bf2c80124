// Coordinator: what other hosts tell it.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/host_place.h"
#include "server/coordinator.h"

namespace sherd::server {

using runtime::MutexLock;

bool Coordinator::HasMoved(const std::string& host, const std::string& address) const {
  if (committed_.hosts.empty() || address.empty()) return false;
  const int index = HostIndex(committed_, host);
  return index >= 0 && committed_.hosts[index].address != address;
}

absl::Status Coordinator::CheckMoves(const std::string& host, const std::string& address) const {
  MutexLock lock(mu_);
  if (memory_ == nullptr || !HasMoved(host, address)) return absl::OkStatus();
  const int index = HostIndex(committed_, host);
  const auto& link = memory_->control().links[index];
  if (link.state.load(std::memory_order_acquire) != runtime::ControlPage::LinkState::kUp)
    return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat("host ", index, " is at ", committed_.hosts[index].address,
                                               " and answers: ", address,
                                               " can take its place when it has gone"));
}

absl::Status Coordinator::MemberExited(const std::string& host, const std::string& address,
                                       const ProcessIdentity& process) {
  MutexLock lock(mu_);
  if (HasMoved(host, address))
    return absl::FailedPreconditionError(absl::StrCat(host, " is not at ", address));
  doomed_.erase({host, {process.pid, process.start}});
  const EpochDoc& doc = state_.doc();
  for (const ServerMember& s : doc.servers) {
    if (s.host == host && s.process == process) events_.push_back(ServerDead{s.id, process});
  }
  for (const ServerMember& s : state_.spares()) {
    if (s.host == host && s.process == process) events_.push_back(ServerDead{s.id, process});
  }
  for (size_t r = 0; r < doc.trainers.size(); ++r) {
    const TrainerMember& t = doc.trainers[r];
    if (t.host == host && t.process == process)
      events_.push_back(TrainerDead{Rank(static_cast<int32_t>(r)), process});
  }
  changed_.SignalAll();
  return absl::OkStatus();
}

absl::Status Coordinator::ReportHost(const v1::ReportHostRequest& report) {
  if (report.index() < 0 || report.index() >= options_.hosts) {
    return absl::InvalidArgumentError(absl::StrCat("host index ", report.index(), " is not in 0..",
                                                   options_.hosts - 1, ", the hosts of job ", options_.job));
  }
  MutexLock lock(mu_);
  if (HasMoved(runtime::HostPlace{report.index(), options_.hosts}.Name(), report.address())) {
    return absl::FailedPreconditionError(absl::StrCat(
        "host ", report.index(), " is not at ", report.address(), " any more: another one took its place"));
  }
  v1::ReportHostRequest& known = hosts_[report.index()];
  const auto up = [](const v1::ReportHostRequest& r) {
    return std::count_if(r.links().begin(), r.links().end(), [](const v1::HostLink& l) { return l.up(); });
  };
  // Bytes sent change all the time: they are read, not told.
  const bool changed = known.data_address() != report.data_address() ||
                       known.rpc_address() != report.rpc_address() || up(known) != up(report);
  known = report;
  if (changed) Changed();
  return absl::OkStatus();
}

}  // namespace sherd::server
