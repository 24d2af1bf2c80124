// MembershipState: resize and drain.
#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "core/job_spec.h"
#include "core/membership.h"
#include "core/partition.h"

namespace sherd {
namespace {

// Operations whose tokens are remembered: enough for any client that still repeats one.
constexpr size_t kRemembered = 16;

std::string ResizeTo(int32_t servers, int32_t trainers) {
  return trainers != 0 ? absl::StrCat("resize to ", trainers, trainers == 1 ? " trainer" : " trainers")
                       : absl::StrCat("resize to ", servers);
}
std::string DrainOf(absl::string_view id) { return absl::StrCat("drain of server ", id); }

}  // namespace

std::string MembershipState::Operation() const {
  return doc_.draining.empty() ? ResizeTo(doc_.desired_servers, doc_.desired_trainers)
                               : DrainOf(doc_.draining);
}

// Handles a token that was seen before, and whatever cannot be asked for now. False: `what` may begin.
bool MembershipState::AnswerRepeated(const std::string& request, const std::string& what, Outcome& out) {
  if (request.empty()) {
    Refuse(request, absl::InvalidArgumentError(absl::StrCat("the ", what, " has an empty request token")),
           out);
    return true;
  }
  const auto differs = [&](const std::string& before) {
    Refuse(request,
           absl::InvalidArgumentError(absl::StrCat("request token ", absl::CHexEscape(request),
                                                   " stood for the ", before, " and cannot stand for the ",
                                                   what)),
           out);
  };
  for (const Finished& done : finished_) {
    if (done.request != request) continue;
    if (!done.what.empty() && done.what != what) {
      differs(done.what);
    } else {
      Accept(request, absl::StrCat("the ", what, " is done"), out);
    }
    return true;
  }
  if (!formed()) {
    Refuse(request,
           absl::FailedPreconditionError(
               absl::StrCat("no ", what, " before the job has formed: ", Describe(now_))),
           out);
    return true;
  }
  if (!doc_.operation_under_way() || doc_.operation_request != request) return false;
  if (what != Operation()) {
    differs(Operation());
  } else {
    Note(absl::StrCat("the ", what, " is under way; it will be answered when done"), out);
  }
  return true;
}

void MembershipState::On(const ResizeRequested& e, Outcome& out) {
  const std::string what = ResizeTo(e.servers, e.trainers);
  if (e.trainers != 0) return ResizeTrainers(e, what, out);
  if (e.servers < 1 || e.servers > kMaxServers) {
    return Refuse(
        e.request,
        absl::InvalidArgumentError(absl::StrCat("servers is ", e.servers, ", not in 1..", kMaxServers)), out);
  }
  if (AnswerRepeated(e.request, what, out)) return;
  if (doc_.operation_under_way()) {
    // One that still waits for servers can be taken back; one that was proposed may have taken effect.
    const bool takes_back = doc_.draining.empty() && doc_.desired_trainers == 0 &&
                            doc_.proposed_epoch.value() == 0 && e.servers == doc_.owning_servers;
    if (!takes_back) {
      return Refuse(e.request,
                    absl::FailedPreconditionError(absl::StrCat(
                        "the ", Operation(), " (request ", absl::CHexEscape(doc_.operation_request),
                        ") is under way, and only one operation can be: ", Describe(now_))),
                    out);
    }
    const std::string reason =
        absl::StrCat("the ", Operation(), " was taken back by request ", absl::CHexEscape(e.request));
    const std::string first = std::move(doc_.operation_request);
    doc_.desired_servers = doc_.owning_servers;
    doc_.operation_request = e.request;
    Commit(reason, out);
    Reply(first, absl::AbortedError(reason), out);
    return FinishOperation(e.request, what, out);
  }
  if (e.servers < doc_.owning_servers) {
    if (absl::Status kept = SlotHosts(doc_, e.servers).status(); !kept.ok()) {
      return Refuse(e.request, std::move(kept), out);
    }
  }
  if (e.servers == doc_.owning_servers) {
    Note(absl::StrCat("the job has ", e.servers, " servers already"), out);
    return FinishOperation(e.request, what, out);
  }
  Begin(e.servers, "", e.request, out);
}

void MembershipState::ResizeTrainers(const ResizeRequested& e, const std::string& what, Outcome& out) {
  if (e.servers != 0 || e.trainers < 1 || e.trainers > kMaxWorldSize) {
    return Refuse(
        e.request,
        absl::InvalidArgumentError(
            e.servers != 0 ? absl::StrCat("servers is ", e.servers, " and trainers ", e.trainers,
                                          ": a resize changes one of the two")
                           : absl::StrCat("trainers is ", e.trainers, ", not in 1..", kMaxWorldSize)),
        out);
  }
  if (AnswerRepeated(e.request, what, out)) return;
  if (SeveralHosts() || doc_.world_size == 0) {
    return Refuse(e.request,
                  absl::FailedPreconditionError(
                      doc_.world_size == 0 ? absl::StrCat("no ", what, " before a trainer has attached")
                                           : absl::StrCat("no ", what, " of a job on several hosts")),
                  out);
  }
  if (doc_.operation_under_way()) {
    // As with servers: one that still waits for trainers can be taken back.
    if (doc_.desired_trainers == 0 || doc_.proposed_epoch.value() != 0 || e.trainers != doc_.world_size) {
      return Refuse(e.request,
                    absl::FailedPreconditionError(absl::StrCat(
                        "the ", Operation(), " (request ", absl::CHexEscape(doc_.operation_request),
                        ") is under way, and only one operation can be: ", Describe(now_))),
                    out);
    }
    const std::string reason =
        absl::StrCat("the ", Operation(), " was taken back by request ", absl::CHexEscape(e.request));
    const std::string first = std::exchange(doc_.operation_request, e.request);
    doc_.desired_trainers = 0;
    doc_.desired_from_step = Step(0);
    Commit(reason, out);
    Reply(first, absl::AbortedError(reason), out);
    return FinishOperation(e.request, what, out);
  }
  if (e.trainers == doc_.world_size) {
    Note(absl::StrCat("the job has ", e.trainers, " trainers already"), out);
    return FinishOperation(e.request, what, out);
  }
  if (e.give_up_step && (e.trainers > doc_.world_size || e.from_step.value() != 0)) {
    return Refuse(
        e.request,
        absl::InvalidArgumentError(absl::StrCat(
            "the ", what, " cannot give up the step in hand: only one to fewer trainers, at once, can")),
        out);
  }
  doc_.desired_trainers = e.trainers;
  doc_.desired_from_step = e.from_step;
  doc_.give_up_step = e.give_up_step;
  doc_.trainers_resized = true;
  const size_t places = std::max<size_t>(doc_.trainers.size(), e.trainers);
  doc_.trainers.resize(places);
  ranks_.resize(places);
  for (size_t r = doc_.world_size; r < places; ++r) ranks_[r].ready = false;
  Begin(doc_.owning_servers, "", e.request, out);
}

void MembershipState::On(const DrainRequested& e, Outcome& out) {
  if (AnswerRepeated(e.request, DrainOf(absl::CHexEscape(e.id.substr(0, 80))), out)) return;
  const auto spare = spares_.find(e.id);
  const int slot = index_.SlotOf(e.id);
  if (spare != spares_.end()) {
    Note(absl::StrCat("server ", e.id, " was a spare"), out);
    out.effects.push_back(RetireServer{e.id, spare->second.host, spare->second.process});
    retired_[e.id] = spare->second.process;
    TakeSpare(spare);
    return FinishOperation(e.request, DrainOf(e.id), out);
  }
  if (slot < 0) {
    return Refuse(e.request,
                  absl::NotFoundError(absl::StrCat("no server \"", absl::CHexEscape(e.id.substr(0, 80)),
                                                   "\" in this job; `sherd status` lists them")),
                  out);
  }
  if (doc_.operation_under_way()) {
    return Refuse(e.request,
                  absl::FailedPreconditionError(absl::StrCat(
                      "the ", Operation(), " (request ", absl::CHexEscape(doc_.operation_request),
                      ") is under way, and only one operation can be: ", Describe(now_))),
                  out);
  }
  if (slots_[slot].successor.has_value()) {
    return Refuse(e.request,
                  absl::FailedPreconditionError(absl::StrCat("slot ", slot, " of server ", e.id,
                                                             " is changing hands already: ", Describe(now_))),
                  out);
  }
  const bool replaced = SpareOn(doc_.servers[slot].host) != spares_.end();
  if (!replaced) {
    if (absl::Status can = CheckCanDrain(slot); !can.ok()) return Refuse(e.request, std::move(can), out);
  }
  Begin(replaced ? doc_.owning_servers : doc_.owning_servers - 1, e.id, e.request, out);
}

// Records the operation, and takes it as far as it goes at once. A drain that makes no room first needs only
// that a spare takes the slot (FillSlots).
void MembershipState::Begin(int32_t desired, std::string draining, const std::string& request, Outcome& out) {
  doc_.desired_servers = desired;
  doc_.draining = std::move(draining);
  doc_.operation_request = request;
  if (!doc_.draining.empty() && desired == doc_.owning_servers)
    SetGiveToSpare(index_.SlotOf(doc_.draining), true);
  GrantSlots();
  Commit(absl::StrCat(Operation(), " was asked for"), out);
  Propose(out);
}

// Every rank that a resize adds stands ready.
bool MembershipState::JoinersReady() const {
  for (int r = doc_.world_size; r < doc_.desired_trainers; ++r) {
    const Place& place = ranks_[r];
    if (place.liveness != Liveness::kAlive || place.successor.has_value() || !place.ready) return false;
  }
  return true;
}

// If the desired number of owners can be had now, gives slots to spares as needed and names the assignment
// after the epoch about to be committed. False if there is nothing to do or servers are missing.
bool MembershipState::GrantSlots() {
  const bool changes = doc_.desired_servers != doc_.owning_servers || doc_.desired_trainers != 0;
  if (!changes || doc_.proposed_epoch.value() > 0 || !JoinersReady()) return false;
  const int64_t missing = doc_.desired_servers - static_cast<int64_t>(doc_.servers.size());
  if (!SparesFor(missing)) return false;
  for (int64_t i = 0; i < missing; ++i) {
    ServerMember member = TakeSpare(SpareOn(HostOfNextSlot(0)));
    member.incarnation = Incarnation(1);
    AddSlot(std::move(member), Liveness::kAlive);
  }
  doc_.proposed_epoch = doc_.epoch.Next();
  return true;
}

void MembershipState::Propose(Outcome& out) const {
  if (doc_.proposed_epoch.value() == 0) return;
  out.effects.push_back(ProposeAssignment{doc_.proposed_epoch, doc_.desired_servers, doc_.desired_trainers});
}

void MembershipState::On(const RangesApplied& e, Outcome& out) {
  if (doc_.proposed_epoch.value() == 0 || e.ranges_epoch != doc_.proposed_epoch) {
    return Note(absl::StrCat("assignment ", e.ranges_epoch.value(), " is not awaited: nothing to do"), out);
  }
  const bool trainers = doc_.desired_trainers != 0;
  std::string reason = absl::StrCat(Operation(), trainers ? ": trainers are now " : ": owners are now ",
                                    trainers ? doc_.desired_trainers : doc_.desired_servers, ", not ",
                                    trainers ? doc_.world_size : doc_.owning_servers);
  const std::string operation = Operation();
  doc_.world_size = doc_.proposed_world_size();
  doc_.desired_trainers = 0;
  doc_.desired_from_step = Step(0);
  doc_.give_up_step = false;
  doc_.owning_servers = doc_.desired_servers;
  doc_.ranges_epoch = doc_.proposed_epoch;
  doc_.proposed_epoch = Epoch(0);
  Outcome dropped;
  DropSlotsPastOwners(dropped);
  const bool still_draining = !doc_.draining.empty() && index_.SlotOf(doc_.draining) >= 0;
  if (!still_draining) doc_.draining.clear();
  Commit(std::move(reason), out);
  // Only what is committed counts: whoever lost its slot hears of it after that.
  std::move(dropped.effects.begin(), dropped.effects.end(), std::back_inserter(out.effects));
  if (still_draining) {
    SetGiveToSpare(index_.SlotOf(doc_.draining), true);
  } else {
    FinishOperation(doc_.operation_request, operation, out);
  }
}

// Servers past the owners lose their slots. In a drain the living ones become spares, to take over from the
// one that is drained; else they retire.
void MembershipState::DropSlotsPastOwners(Outcome& out) {
  while (static_cast<int64_t>(doc_.servers.size()) > doc_.owning_servers) {
    ServerMember member = doc_.servers.back();
    const Place place = slots_.back();
    DropLastSlot();
    if (place.successor.has_value()) {  // it never had the slot, so it waits like any other
      const Successor& next = *place.successor;
      Reply(next.request, absl::OkStatus(), out);
      AddSpare({next.id, next.address, next.host, next.process, Incarnation(0)});
    }
    if (place.liveness == Liveness::kDead) continue;
    const bool becomes_spare =
        place.liveness == Liveness::kAlive && !doc_.draining.empty() && doc_.draining != member.id;
    if (becomes_spare) {
      AddSpare(std::move(member));
    } else if (spares_.count(member.id) == 0) {
      out.effects.push_back(RetireServer{member.id, member.host, member.process});
      retired_[member.id] = member.process;
    }
  }
}

// Answers the caller and remembers the token, for when it comes again.
void MembershipState::FinishOperation(std::string request, std::string what, Outcome& out) {
  Reply(request, absl::OkStatus(), out);
  finished_.push_back({std::move(request), std::move(what)});
  while (finished_.size() > kRemembered) finished_.pop_front();
}

}  // namespace sherd
