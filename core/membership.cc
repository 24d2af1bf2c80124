#include "core/membership.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/job_spec.h"
#include "core/partition.h"

namespace sherd {
namespace {

// Of many that are waited for alike, so many are named.
constexpr size_t kNamed = 4;

std::string Count(int64_t n, absl::string_view noun) { return absl::StrCat(n, " ", noun, n == 1 ? "" : "s"); }

}  // namespace

absl::StatusOr<MembershipState> MembershipState::Create(Config config) {
  if (config.expected_servers < 1 || config.expected_servers > kMaxServers) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected_servers is ", config.expected_servers, ", not in 1..", kMaxServers));
  }
  if (config.world_size < 0 || config.world_size > kMaxWorldSize) {
    return absl::InvalidArgumentError(absl::StrCat("world_size is ", config.world_size, ", not in 0..",
                                                   kMaxWorldSize, " (0: as trainers say)"));
  }
  if (config.hosts < 1 || config.hosts > kMaxHosts) {
    return absl::InvalidArgumentError(absl::StrCat("hosts is ", config.hosts, ", not in 1..", kMaxHosts));
  }
  MembershipState state;
  if (config.hosts > 1) {
    config.world_size = 0;
    state.expected_hosts_ = config.hosts;
    state.hosts_.resize(config.hosts);
  }
  state.expected_servers_ = config.expected_servers;
  state.configured_world_size_ = config.world_size;
  state.doc_.job = std::move(config.job);
  state.doc_.world_size = config.world_size;
  state.doc_.trainers.resize(config.world_size);
  state.ranks_.resize(config.world_size);
  return state;
}

absl::StatusOr<MembershipState> MembershipState::Restore(EpochDoc last) {
  if (absl::Status status = CheckEpochDoc(last); !status.ok()) return status;
  MembershipState state;
  state.expected_servers_ = last.owning_servers;
  state.doc_ = std::move(last);
  state.hosts_ = state.doc_.hosts;
  state.expected_hosts_ = std::max<int32_t>(1, static_cast<int32_t>(state.hosts_.size()));
  for (const ServerMember& member : std::exchange(state.doc_.servers, {}))
    state.AddSlot(member, Liveness::kUnverified);
  state.ranks_.resize(state.doc_.trainers.size());
  for (size_t r = 0; r < state.ranks_.size(); ++r) {
    const TrainerMember& trainer = state.doc_.trainers[r];
    if (trainer.incarnation.value() == 0) continue;
    // Not ready: it had been seen dead or had detached, so its place is free.
    state.ranks_[r].liveness = trainer.ready ? Liveness::kUnverified : Liveness::kLeft;
  }
  if (!state.doc_.operation_under_way() && !state.doc_.operation_request.empty()) {
    state.finished_.push_back({state.doc_.operation_request, ""});
  }
  return state;
}

Outcome MembershipState::Apply(const Event& event, absl::Time now) {
  now_ = now;
  Outcome out;
  absl::visit([&](const auto& e) { On(e, out); }, event);
  Advance(out);
  return out;
}

void MembershipState::On(const Recovered&, Outcome& out) {
  Note(absl::StrCat("restored epoch ", doc_.epoch.value()), out);
  const int draining = doc_.draining.empty() ? -1 : index_.SlotOf(doc_.draining);
  if (draining >= 0 && doc_.proposed_epoch.value() == 0) SetGiveToSpare(draining, true);
  Propose(out);
}

// Takes every step that has become possible.
void MembershipState::Advance(Outcome& out) {
  if (!formed()) {
    if (MayForm()) Form(out);
    return;
  }
  FillSlots(out);
  if (GrantSlots()) {
    Commit(absl::StrCat(doc_.desired_trainers != 0 ? "trainers" : "servers", " joined for the ", Operation()),
           out);
    Propose(out);
  }
}

void MembershipState::Form(Outcome& out) {
  int there = 0;
  for (size_t host = 0; static_cast<int64_t>(doc_.servers.size()) < expected_servers_;) {
    auto next = spares_.begin();
    if (SeveralHosts()) {  // one host's after the other's, as many as it brought
      if (there == doc_.hosts[host].servers) {
        ++host;
        there = 0;
        continue;
      }
      next = SpareOn(doc_.hosts[host].name);
      ++there;
    }
    ServerMember member = TakeSpare(next);
    member.incarnation = Incarnation(1);
    AddSlot(std::move(member), Liveness::kAlive);
  }
  doc_.owning_servers = doc_.desired_servers = expected_servers_;
  doc_.ranges_epoch = Epoch(1);
  std::vector<std::string> answered;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    if (!ranks_[r].successor.has_value()) continue;
    answered.push_back(ranks_[r].successor->request);
    AdmitTrainer(static_cast<int>(r));
  }
  Commit(absl::StrCat(Count(expected_servers_, "server"), " joined"), out);
  for (const std::string& request : answered) Reply(request, absl::OkStatus(), out);
}

void MembershipState::Commit(std::string reason, Outcome& out) {
  ++doc_.epoch;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    const Liveness liveness = ranks_[r].liveness;
    doc_.trainers[r].ready = liveness == Liveness::kAlive || liveness == Liveness::kUnverified;
  }
  Note(absl::StrCat("epoch ", doc_.epoch.value(), ": ", reason), out);
  doc_.reason = std::move(reason);
  out.effects.push_back(CommitEpoch{doc_});
}

void MembershipState::Set(Place& place, Liveness liveness) {
  place.liveness = liveness;
  place.since = now_;
}

void MembershipState::Note(absl::string_view what, Outcome& out) {
  absl::StrAppend(&out.reason, out.reason.empty() ? "" : "; ", what);
}

void MembershipState::Refuse(const std::string& request, absl::Status status, Outcome& out) {
  Note(absl::StrCat("refused: ", status.message()), out);
  Reply(request, std::move(status), out);
}

void MembershipState::Reply(const std::string& request, absl::Status status, Outcome& out) {
  if (!request.empty()) out.effects.push_back(Answer{request, std::move(status)});
}

void MembershipState::AskAgain(Successor& successor, const std::string& request, Outcome& out) {
  if (successor.request == request) return;
  Reply(successor.request, absl::AbortedError("the same process asked again"), out);
  successor.request = request;
}

void MembershipState::Accept(const std::string& request, absl::string_view what, Outcome& out) {
  Note(what, out);
  Reply(request, absl::OkStatus(), out);
}

std::vector<ServerMember> MembershipState::spares() const {
  std::vector<ServerMember> all;
  for (const auto& spare : spares_) all.push_back(spare.second);
  return all;
}

bool MembershipState::waiting() const {
  const auto unsettled = [](const Place& p) {
    const bool settled = p.liveness == Liveness::kAlive || (p.liveness == Liveness::kLeft && p.finished);
    return !settled || p.successor.has_value();
  };
  return !formed() || doc_.world_size == 0 || doc_.operation_under_way() || !unsettled_.empty() ||
         std::any_of(ranks_.begin(), ranks_.begin() + doc_.wanted_trainers(), unsettled);
}

std::string MembershipState::Ago(const Place& place, absl::Time now) {
  if (place.since == absl::InfinitePast()) return "";
  return absl::StrCat(" ", absl::ToInt64Seconds(now - place.since), " s ago");
}

void MembershipState::DescribeServers(absl::Time now, std::vector<std::string>* waits) const {
  size_t named = 0;
  for (const int s : unsettled_) {
    if (named++ == kNamed) {
      waits->push_back(Count(static_cast<int64_t>(unsettled_.size() - kNamed), "more server"));
      return;
    }
    const Place& place = slots_[s];
    const ServerMember& member = doc_.servers[s];
    const std::string name =
        absl::StrCat("server ", member.id, " (slot ", s, ", process ", Show(member.process), ")");
    if (place.successor.has_value()) {
      waits->push_back(absl::StrCat(name, " to be seen dead, so that process ",
                                    Show(place.successor->process), " may take its slot"));
    } else if (place.liveness == Liveness::kUnverified) {
      waits->push_back(absl::StrCat(name, " to join again or be seen dead"));
    } else {
      waits->push_back(absl::StrCat(name, " to be restarted", place.give_to_spare ? " or replaced" : "",
                                    "; it ", place.liveness == Liveness::kDead ? "died" : "left",
                                    Ago(place, now)));
    }
  }
}

std::string MembershipState::Describe(absl::Time now) const {
  std::vector<std::string> waits;
  if (!formed()) {
    waits.push_back(AwaitedToForm());
  }
  DescribeServers(now, &waits);
  if (formed() && doc_.world_size == 0) waits.push_back("the first trainer to attach");
  std::vector<std::string> dying, absent;
  int more_dying = 0, more_absent = 0;
  for (int r = 0; r < doc_.wanted_trainers(); ++r) {
    const Place& place = ranks_[r];
    if (place.successor.has_value() && place.liveness != Liveness::kVacant) {
      if (dying.size() == kNamed && ++more_dying > 0) continue;
      dying.push_back(
          absl::StrCat("process ", Show(doc_.trainers[r].process), " of rank ", r, " to be seen dead"));
    } else if (place.liveness != Liveness::kAlive && !place.finished && !place.successor.has_value()) {
      if (absent.size() == kNamed && ++more_absent > 0) continue;
      absent.push_back(place.liveness == Liveness::kVacant
                           ? absl::StrCat(r)
                           : absl::StrCat(r, " (", Show(place.liveness), Ago(place, now), ")"));
    }
  }
  waits.insert(waits.end(), dying.begin(), dying.end());
  if (more_dying > 0) waits.push_back(absl::StrCat("those of ", Count(more_dying, "more rank")));
  if (!absent.empty()) {
    waits.push_back(absl::StrCat("a trainer to attach as rank ", absl::StrJoin(absent, ", "),
                                 more_absent > 0 ? absl::StrCat(" and ", more_absent, " more") : ""));
  }
  if (doc_.proposed_epoch.value() > 0) {
    waits.push_back(absl::StrCat("the next step boundary (", Operation(), ")"));
  } else if (doc_.desired_trainers > doc_.world_size) {
    if (absent.empty()) waits.push_back(absl::StrCat("new trainers to be ready (", Operation(), ")"));
  } else if (doc_.desired_servers > static_cast<int64_t>(doc_.servers.size()) && formed()) {
    const int64_t missing = doc_.desired_servers - static_cast<int64_t>(doc_.servers.size() + spares_.size());
    waits.push_back(absl::StrCat(Count(missing, "more server"), " to join (", Operation(), ")"));
  } else if (!doc_.draining.empty() && !slots_[index_.SlotOf(doc_.draining)].successor.has_value()) {
    waits.push_back(absl::StrCat("a server to join that can take over (", Operation(), ")"));
  }
  if (!waits.empty()) return absl::StrCat("waiting for ", absl::StrJoin(waits, "; for "));
  const auto finished = std::count_if(ranks_.begin(), ranks_.begin() + doc_.world_size,
                                      [](const Place& p) { return p.finished; });
  return absl::StrCat("running: ", Count(doc_.owning_servers, "server"), ", ",
                      Count(doc_.world_size, "trainer"),
                      finished > 0 ? absl::StrCat(" (", finished, " finished)") : "");
}

}  // namespace sherd
