// MembershipState: servers come, go and take slots.
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "core/job_spec.h"
#include "core/membership.h"
#include "core/partition.h"

namespace sherd {
int MembershipState::SlotOf(absl::string_view id) const {
  for (size_t s = 0; s < doc_.servers.size(); ++s) {
    if (doc_.servers[s].id == id) return static_cast<int>(s);
  }
  return -1;
}

int MembershipState::SlotSoughtBy(absl::string_view id) const {
  for (size_t s = 0; s < slots_.size(); ++s) {
    if (slots_[s].successor.has_value() && slots_[s].successor->id == id) return static_cast<int>(s);
  }
  return -1;
}

std::string MembershipState::IdOf(const ProcessIdentity& process, absl::string_view host) const {
  for (size_t s = 0; s < slots_.size(); ++s) {
    const ServerMember& member = doc_.servers[s];
    if (slots_[s].liveness != Liveness::kDead && member.process == process && member.host == host)
      return member.id;
    const absl::optional<Successor>& next = slots_[s].successor;
    if (next.has_value() && next->process == process && next->host == host) return next->id;
  }
  for (const auto& spare : spares_) {
    if (spare.second.process == process && spare.second.host == host) return spare.first;
  }
  return "";
}

void MembershipState::On(const ServerJoined& e, Outcome& out) {
  if (!IsValidName(e.id)) {
    return Refuse(
        e.request,
        absl::InvalidArgumentError(absl::StrCat("server id \"", absl::CHexEscape(e.id.substr(0, 80)),
                                                "\" is not 1..64 characters of [A-Za-z0-9._-]")),
        out);
  }
  if (e.process.pid <= 0 || e.address.empty()) {
    return Refuse(e.request,
                  absl::InvalidArgumentError(absl::StrCat("server ", e.id, " joins with pid ", e.process.pid,
                                                          " and address \"", absl::CHexEscape(e.address),
                                                          "\"; both are needed")),
                  out);
  }
  if (absl::Status known = CheckStaysOn(e.host, e.id, e.host); !known.ok()) {
    return Refuse(e.request, std::move(known), out);
  }
  const std::string other = IdOf(e.process, e.host);
  if (!other.empty() && other != e.id) {
    return Refuse(
        e.request,
        absl::AlreadyExistsError(absl::StrCat("process ", Show(e.process), " cannot join as server ", e.id,
                                              ": it is already server ", other)),
        out);
  }
  if (const int slot = SlotOf(e.id); slot >= 0) return JoinSlot(slot, e, out);
  if (const int slot = SlotSoughtBy(e.id); slot >= 0) {
    if (slots_[slot].successor->process == e.process) {
      return Accept(e.request, absl::StrCat("server ", e.id, " is to take slot ", slot), out);
    }
    return Refuse(e.request,
                  absl::AlreadyExistsError(absl::StrCat("server id ", e.id, " is held by living process ",
                                                        Show(slots_[slot].successor->process),
                                                        ": stop it first, or join under another id")),
                  out);
  }
  JoinAsSpare(e, out);
}

// A process joins under the id of a slot: the one that is there, or a would-be successor.
void MembershipState::JoinSlot(int slot, const ServerJoined& e, Outcome& out) {
  Place& place = slots_[slot];
  const ServerMember& member = doc_.servers[slot];
  const bool same = member.process == e.process && member.host == e.host;
  if (place.successor.has_value()) {
    if (place.successor->process == e.process) {
      if (place.successor->id == e.id) AskAgain(*place.successor, e.request, out);
      Note(absl::StrCat("process ", Show(e.process), " still waits for slot ", slot), out);
      return;
    }
    return Refuse(
        e.request,
        absl::AlreadyExistsError(absl::StrCat("process ", Show(place.successor->process),
                                              " is about to take slot ", slot, " of server ", e.id)),
        out);
  }
  if (same && place.liveness == Liveness::kDead) {
    return Refuse(e.request,
                  absl::FailedPreconditionError(
                      absl::StrCat("process ", Show(e.process), " of server ", e.id, " was seen dead")),
                  out);
  }
  if (same) {
    if (place.liveness != Liveness::kAlive) Set(place, Liveness::kAlive);
    if (doc_.draining != e.id) place.give_to_spare = false;
    return Accept(e.request, absl::StrCat("server ", e.id, " holds slot ", slot), out);
  }
  if (place.liveness == Liveness::kAlive) {
    return Refuse(e.request,
                  absl::AlreadyExistsError(absl::StrCat("server id ", e.id, " is held by living process ",
                                                        Show(member.process),
                                                        ": stop it first, or join under another id")),
                  out);
  }
  if (absl::Status stays = CheckStaysOn(member.host, e.id, e.host); !stays.ok()) {
    return Refuse(e.request, std::move(stays), out);
  }
  Succeed(slot, Successor{e.id, e.address, e.host, e.process, e.request}, out);
}

void MembershipState::JoinAsSpare(const ServerJoined& e, Outcome& out) {
  const auto held_by = [&](const ProcessIdentity& process) {
    return absl::AlreadyExistsError(absl::StrCat("server id ", e.id, " is held by living process ",
                                                 Show(process), ": stop it first, or join under another id"));
  };
  if (const auto spare = spares_.find(e.id); spare != spares_.end()) {
    if (spare->second.process != e.process) return Refuse(e.request, held_by(spare->second.process), out);
    return Accept(e.request, absl::StrCat("server ", e.id, " waits for a slot"), out);
  }
  if (const auto retired = retired_.find(e.id); retired != retired_.end()) {
    if (retired->second != e.process) return Refuse(e.request, held_by(retired->second), out);
    return Refuse(
        e.request,
        absl::FailedPreconditionError(absl::StrCat("server ", e.id, " was retired: restart it to join")),
        out);
  }
  if (static_cast<int64_t>(spares_.size() + retired_.size()) >= kMaxServers) {
    return Refuse(e.request, absl::ResourceExhaustedError(absl::StrCat(kMaxServers, " servers wait already")),
                  out);
  }
  ServerMember member;
  member.id = e.id;
  member.address = e.address;
  member.host = e.host;
  member.process = e.process;
  spares_[e.id] = std::move(member);
  Accept(e.request, absl::StrCat("server ", e.id, formed() ? " joined as a spare" : " joined"), out);
}

// `successor` takes `slot`: at once if its server was seen dead, else as soon as that is.
void MembershipState::Succeed(int slot, Successor successor, Outcome& out) {
  Place& place = slots_[slot];
  const ServerMember& member = doc_.servers[slot];
  place.successor = std::move(successor);
  if (place.liveness == Liveness::kDead) return InstallServer(slot, out);
  Note(absl::StrCat("process ", Show(place.successor->process), " takes slot ", slot, " when process ",
                    Show(member.process), " of server ", member.id, " is seen dead"),
       out);
  out.effects.push_back(MustBeDead{member.id, Rank(0), member.host, member.process});
}

// REQUIRES: the slot's server was seen dead, and there is a successor.
void MembershipState::InstallServer(int slot, Outcome& out) {
  Place& place = slots_[slot];
  ServerMember& member = doc_.servers[slot];
  Successor next = *std::move(place.successor);
  place.successor.reset();
  const std::string before = member.id;
  member = {std::move(next.id), std::move(next.address), std::move(next.host), next.process,
            member.incarnation.Next()};
  Set(place, Liveness::kAlive);
  // A drain that first makes room ends with that (RangesApplied).
  const bool ready = doc_.proposed_epoch.value() == 0;
  const bool drained = ready && before == doc_.draining && member.id != before;
  place.give_to_spare = ready && doc_.draining == member.id;
  if (drained) doc_.draining.clear();
  std::string reason = before == member.id
                           ? absl::StrCat("server ", member.id, " came back to slot ", slot, " as process ",
                                          Show(member.process))
                           : absl::StrCat("server ", member.id, " took slot ", slot, " of server ", before);
  Commit(std::move(reason), out);
  Reply(next.request, absl::OkStatus(), out);
  if (drained) FinishOperation(doc_.operation_request, absl::StrCat("drain of server ", before), out);
}

// Spares take the slots of servers that left or are drained.
void MembershipState::FillSlots(Outcome& out) {
  for (size_t s = 0; s < slots_.size() && !spares_.empty(); ++s) {
    if (!slots_[s].give_to_spare || slots_[s].successor.has_value()) continue;
    const auto found = SpareOn(doc_.servers[s].host);
    if (found == spares_.end()) continue;
    ServerMember spare = std::move(found->second);
    spares_.erase(found);
    Successor next{std::move(spare.id), std::move(spare.address), std::move(spare.host), spare.process, ""};
    Succeed(static_cast<int>(s), std::move(next), out);
  }
}

void MembershipState::On(const ServerLeft& e, Outcome& out) {
  const auto gone = [&] { Accept(e.request, absl::StrCat("server ", e.id, " left"), out); };
  if (const auto spare = spares_.find(e.id); spare != spares_.end() && spare->second.process == e.process) {
    spares_.erase(spare);
    return gone();
  }
  if (const auto retired = retired_.find(e.id); retired != retired_.end() && retired->second == e.process) {
    return gone();
  }
  const int slot = SlotOf(e.id);
  if (slot < 0 || doc_.servers[slot].process != e.process) {
    return Refuse(e.request,
                  absl::NotFoundError(
                      absl::StrCat("process ", Show(e.process), " is not server ", e.id, " of this job")),
                  out);
  }
  if (slots_[slot].liveness != Liveness::kDead) Set(slots_[slot], Liveness::kLeft);
  slots_[slot].give_to_spare = true;
  gone();
}

void MembershipState::On(const ServerDead& e, Outcome& out) {
  const std::string who = absl::StrCat("process ", Show(e.process), " of server ", e.id);
  for (size_t s = 0; s < slots_.size(); ++s) {
    Place& place = slots_[s];
    if (place.successor.has_value() && place.successor->id == e.id && place.successor->process == e.process) {
      Note(absl::StrCat(who, " died before it took slot ", s), out);
      Reply(place.successor->request, absl::AbortedError(out.reason), out);
      place.successor.reset();
      return;
    }
    if (doc_.servers[s].id == e.id && doc_.servers[s].process == e.process) {
      if (place.liveness == Liveness::kDead) break;
      Set(place, Liveness::kDead);
      Note(absl::StrCat(who, " in slot ", s, " died"), out);
      if (place.successor.has_value()) InstallServer(static_cast<int>(s), out);
      return;
    }
  }
  if (const auto spare = spares_.find(e.id); spare != spares_.end() && spare->second.process == e.process) {
    spares_.erase(spare);
    Note(absl::StrCat(who, ", a spare, died"), out);
    return;
  }
  if (const auto retired = retired_.find(e.id); retired != retired_.end() && retired->second == e.process) {
    retired_.erase(retired);
    Note(absl::StrCat(who, ", retired, has exited"), out);
    return;
  }
  Note(absl::StrCat(who, " is no member any more: nothing to do"), out);
}

}  // namespace sherd
