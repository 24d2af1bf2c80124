// MembershipState: servers come, go and take slots.
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "core/job_spec.h"
#include "core/membership.h"
#include "core/partition.h"

namespace sherd {

using Role = MemberIndex::Role;

void MembershipState::AddSlot(ServerMember member, Liveness liveness) {
  const int slot = static_cast<int>(slots_.size());
  index_.Add(Role::kHolds, slot, member.id, member.host, member.process);
  doc_.servers.push_back(std::move(member));
  slots_.emplace_back();
  SetLiveness(slot, liveness);
}

void MembershipState::DropLastSlot() {
  const int slot = static_cast<int>(slots_.size()) - 1;
  SetSuccessor(slot, absl::nullopt);
  SetGiveToSpare(slot, false);
  unsettled_.erase(slot);
  const ServerMember& member = doc_.servers.back();
  index_.Remove(Role::kHolds, slot, member.id, member.host, member.process);
  doc_.servers.pop_back();
  slots_.pop_back();
}

void MembershipState::SetMember(int slot, ServerMember member) {
  ServerMember& now = doc_.servers.Mutable(slot);
  index_.Remove(Role::kHolds, slot, now.id, now.host, now.process);
  now = std::move(member);
  index_.Add(Role::kHolds, slot, now.id, now.host, now.process);
}

void MembershipState::SetLiveness(int slot, Liveness liveness) {
  Set(slots_[slot], liveness);
  NoteUnsettled(slot);
}

void MembershipState::SetSuccessor(int slot, absl::optional<Successor> successor) {
  absl::optional<Successor>& now = slots_[slot].successor;
  if (now.has_value()) index_.Remove(Role::kSeeks, slot, now->id, now->host, now->process);
  now = std::move(successor);
  if (now.has_value()) index_.Add(Role::kSeeks, slot, now->id, now->host, now->process);
  NoteUnsettled(slot);
}

void MembershipState::SetGiveToSpare(int slot, bool give) {
  slots_[slot].give_to_spare = give;
  if (give) {
    give_to_spare_.insert(slot);
  } else {
    give_to_spare_.erase(slot);
  }
}

void MembershipState::NoteUnsettled(int slot) {
  const Place& place = slots_[slot];
  if (place.liveness != Liveness::kAlive || place.successor.has_value()) {
    unsettled_.insert(slot);
  } else {
    unsettled_.erase(slot);
  }
}

void MembershipState::AddSpare(ServerMember member) {
  index_.Add(Role::kWaits, -1, member.id, member.host, member.process);
  spares_on_[member.host].insert(member.id);
  const std::string id = member.id;
  spares_[id] = std::move(member);
}

ServerMember MembershipState::TakeSpare(Spares::iterator spare) {
  ServerMember member = std::move(spare->second);
  spares_.erase(spare);
  index_.Remove(Role::kWaits, -1, member.id, member.host, member.process);
  const auto there = spares_on_.find(member.host);
  there->second.erase(member.id);
  if (there->second.empty()) spares_on_.erase(there);
  return member;
}

std::string MembershipState::IdOf(const ProcessIdentity& process, const std::string& host) const {
  std::string id;
  index_.Find(process, host, [&](const MemberIndex::Entry& e) {
    if (e.role != Role::kHolds || slots_[e.slot].liveness != Liveness::kDead) id = e.id;
  });
  return id;
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
  if (const int slot = index_.SlotOf(e.id); slot >= 0) return JoinSlot(slot, e, out);
  if (const int slot = index_.SlotSoughtBy(e.id); slot >= 0) {
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
    if (place.liveness != Liveness::kAlive) SetLiveness(slot, Liveness::kAlive);
    if (doc_.draining != e.id) SetGiveToSpare(slot, false);
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
  AddSpare(std::move(member));
  Accept(e.request, absl::StrCat("server ", e.id, formed() ? " joined as a spare" : " joined"), out);
}

// `successor` takes `slot`: at once if its server was seen dead, else as soon as that is.
void MembershipState::Succeed(int slot, Successor successor, Outcome& out) {
  const Place& place = slots_[slot];
  const ServerMember& member = doc_.servers[slot];
  SetSuccessor(slot, std::move(successor));
  if (place.liveness == Liveness::kDead) return InstallServer(slot, out);
  Note(absl::StrCat("process ", Show(place.successor->process), " takes slot ", slot, " when process ",
                    Show(member.process), " of server ", member.id, " is seen dead"),
       out);
  out.effects.push_back(MustBeDead{member.id, Rank(0), member.host, member.process});
}

// REQUIRES: the slot's server was seen dead, and there is a successor.
void MembershipState::InstallServer(int slot, Outcome& out) {
  const Successor next = *slots_[slot].successor;
  SetSuccessor(slot, absl::nullopt);
  const std::string before = doc_.servers[slot].id;
  SetMember(slot, {next.id, next.address, next.host, next.process, doc_.servers[slot].incarnation.Next()});
  const ServerMember& member = doc_.servers[slot];
  SetLiveness(slot, Liveness::kAlive);
  // A drain that first makes room ends with that (RangesApplied).
  const bool ready = doc_.proposed_epoch.value() == 0;
  const bool drained = ready && before == doc_.draining && member.id != before;
  SetGiveToSpare(slot, ready && doc_.draining == member.id);
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
  for (auto it = give_to_spare_.begin(); it != give_to_spare_.end() && !spares_.empty();) {
    const int s = *it++;  // a slot that is filled is no longer among them
    if (slots_[s].successor.has_value()) continue;
    const auto found = SpareOn(doc_.servers[s].host);
    if (found == spares_.end()) continue;
    ServerMember spare = TakeSpare(found);
    Successor next{std::move(spare.id), std::move(spare.address), std::move(spare.host), spare.process, ""};
    Succeed(s, std::move(next), out);
  }
}

void MembershipState::On(const ServerLeft& e, Outcome& out) {
  const auto gone = [&] { Accept(e.request, absl::StrCat("server ", e.id, " left"), out); };
  if (const auto spare = spares_.find(e.id); spare != spares_.end() && spare->second.process == e.process) {
    TakeSpare(spare);
    return gone();
  }
  if (const auto retired = retired_.find(e.id); retired != retired_.end() && retired->second == e.process) {
    return gone();
  }
  const int slot = index_.SlotOf(e.id);
  if (slot < 0 || doc_.servers[slot].process != e.process) {
    return Refuse(e.request,
                  absl::NotFoundError(
                      absl::StrCat("process ", Show(e.process), " is not server ", e.id, " of this job")),
                  out);
  }
  if (slots_[slot].liveness != Liveness::kDead) SetLiveness(slot, Liveness::kLeft);
  SetGiveToSpare(slot, true);
  gone();
}

void MembershipState::On(const ServerDead& e, Outcome& out) {
  const std::string who = absl::StrCat("process ", Show(e.process), " of server ", e.id);
  const int sought = index_.SlotSoughtBy(e.id), held = index_.SlotOf(e.id);
  if (sought >= 0 && slots_[sought].successor->process == e.process) {
    Note(absl::StrCat(who, " died before it took slot ", sought), out);
    Reply(slots_[sought].successor->request, absl::AbortedError(out.reason), out);
    return SetSuccessor(sought, absl::nullopt);
  }
  if (held >= 0 && doc_.servers[held].process == e.process && slots_[held].liveness != Liveness::kDead) {
    SetLiveness(held, Liveness::kDead);
    Note(absl::StrCat(who, " in slot ", held, " died"), out);
    if (slots_[held].successor.has_value()) InstallServer(held, out);
    return;
  }
  if (const auto spare = spares_.find(e.id); spare != spares_.end() && spare->second.process == e.process) {
    TakeSpare(spare);
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
