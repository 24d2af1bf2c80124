// MembershipState: trainers attach, detach and die.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/job_spec.h"
#include "core/membership.h"

namespace sherd {
// Whether `e` fits this job: everything about it but who has the place now.
absl::Status MembershipState::CheckTrainer(const TrainerAttached& e) const {
  if (e.world_size < 1 || e.world_size > kMaxWorldSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("a trainer attached with world_size ", e.world_size, ", not in 1..", kMaxWorldSize));
  }
  if (e.rank.value() < 0 || e.rank.value() >= e.world_size) {
    return absl::InvalidArgumentError(absl::StrCat("a trainer attached as rank ", e.rank.value(),
                                                   ", not in 0..", e.world_size - 1, " (world_size ",
                                                   e.world_size, ")"));
  }
  if (e.process.pid <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", e.rank.value(), " attached with pid ", e.process.pid));
  }
  if (e.layout_hash == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", e.rank.value(), " attached without a layout hash"));
  }
  if (SeveralHosts() && doc_.hosts.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("rank ", e.rank.value(), " attached before all hosts have joined: ", AwaitedToForm()));
  }
  if (doc_.world_size != 0 && doc_.world_size != e.world_size && !doc_.trainers_resized) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", e.rank.value(), " attached with world_size ",
                                                   e.world_size, ", but the job's is ", doc_.world_size));
  }
  if (doc_.world_size != 0 && e.rank.value() >= doc_.wanted_trainers()) {
    return absl::FailedPreconditionError(
        absl::StrCat("rank ", e.rank.value(), " attached, but the job has ", doc_.world_size,
                     " trainers now; `sherd resize --trainers ", e.rank.value() + 1, "` makes room for it"));
  }
  if (doc_.layout_hash != 0 && doc_.layout_hash != e.layout_hash) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", e.rank.value(), " attached with layout hash ", absl::Hex(e.layout_hash),
                     ", but the job's is ", absl::Hex(doc_.layout_hash),
                     ": its tensors differ in name, order, shape, dtype or group"));
  }
  if (!doc_.hosts.empty() && HostIndex(doc_, e.host) != RankHosts(doc_).HostOf(e.rank)) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", e.rank.value(), " attached on host ", e.host,
                                                   ", but it belongs to host ",
                                                   doc_.hosts[RankHosts(doc_).HostOf(e.rank)].name));
  }
  return absl::OkStatus();
}

void MembershipState::On(const TrainerAttached& e, Outcome& out) {
  if (absl::Status status = CheckTrainer(e); !status.ok()) return Refuse(e.request, std::move(status), out);
  if (doc_.world_size == 0) {
    doc_.world_size = e.world_size;
    doc_.trainers.resize(e.world_size);
    ranks_.resize(e.world_size);
  }
  doc_.layout_hash = e.layout_hash;
  const int rank = e.rank.value();
  Place& place = ranks_[rank];
  const TrainerMember& member = doc_.trainers[rank];
  const bool same = member.process == e.process && member.host == e.host;
  if (place.successor.has_value()) {
    if (place.successor->process == e.process) {
      AskAgain(*place.successor, e.request, out);
      Note(absl::StrCat("process ", Show(e.process), " still waits for rank ", rank), out);
      return;
    }
    return Refuse(e.request,
                  absl::AlreadyExistsError(absl::StrCat("process ", Show(place.successor->process),
                                                        " is about to take rank ", rank)),
                  out);
  }
  if (same && place.liveness == Liveness::kDead) {
    return Refuse(e.request,
                  absl::FailedPreconditionError(
                      absl::StrCat("process ", Show(e.process), " of rank ", rank, " was seen dead")),
                  out);
  }
  if (same && (place.liveness == Liveness::kAlive || place.liveness == Liveness::kUnverified)) {
    if (place.liveness != Liveness::kAlive) Set(place, Liveness::kAlive);
    return Accept(e.request, absl::StrCat("process ", Show(e.process), " holds rank ", rank), out);
  }
  place.successor = Successor{"", "", e.host, e.process, e.request};
  if (!formed()) {
    Note(absl::StrCat("rank ", rank, " waits for the first epoch"), out);
  } else if (place.liveness == Liveness::kAlive || place.liveness == Liveness::kUnverified) {
    Note(absl::StrCat("process ", Show(e.process), " takes rank ", rank, " when process ",
                      Show(member.process), " is seen dead"),
         out);
    out.effects.push_back(MustBeDead{"", e.rank, member.host, member.process});
  } else {
    InstallTrainer(rank, out);
  }
}

// REQUIRES: the rank's last trainer was seen dead or detached, or there was none; and there is a successor.
void MembershipState::InstallTrainer(int rank, Outcome& out) {
  const std::string request = ranks_[rank].successor->request;
  AdmitTrainer(rank);
  const TrainerMember& member = doc_.trainers[rank];
  Commit(absl::StrCat("rank ", rank, " attached as process ", Show(member.process), ", incarnation ",
                      member.incarnation.value()),
         out);
  Reply(request, absl::OkStatus(), out);
}

// Puts the successor into the document, for the next commit.
void MembershipState::AdmitTrainer(int rank) {
  Place& place = ranks_[rank];
  TrainerMember& member = doc_.trainers[rank];
  member.incarnation = member.incarnation.Next();
  member.process = place.successor->process;
  member.host = std::move(place.successor->host);
  place.successor.reset();
  place.finished = place.ready = false;
  Set(place, Liveness::kAlive);
  doc_.trainers_epoch = doc_.epoch.Next();
}

void MembershipState::On(const TrainerDetached& e, Outcome& out) {
  const int rank = e.rank.value();
  const bool known = rank >= 0 && rank < static_cast<int>(ranks_.size()) &&
                     doc_.trainers[rank].incarnation.value() > 0 &&
                     doc_.trainers[rank].process == e.process && ranks_[rank].liveness != Liveness::kDead;
  if (!known) {
    return Refuse(e.request,
                  absl::FailedPreconditionError(
                      absl::StrCat("process ", Show(e.process), " does not hold rank ", rank)),
                  out);
  }
  Place& place = ranks_[rank];
  place.finished = e.finished;
  // A successor that waits already goes on waiting for the exit: MustBeDead was said.
  if (place.liveness != Liveness::kLeft) Set(place, Liveness::kLeft);
  Accept(e.request, absl::StrCat("rank ", rank, e.finished ? " finished" : " detached"), out);
}

void MembershipState::On(const TrainerReady& e, Outcome& out) {
  const int rank = e.rank.value();
  const bool awaited = rank >= doc_.world_size && rank < doc_.desired_trainers &&
                       doc_.trainers[rank].process == e.process && ranks_[rank].liveness == Liveness::kAlive;
  if (!awaited) {
    return Note(
        absl::StrCat("process ", Show(e.process), " of rank ", rank, " is not awaited: nothing to do"), out);
  }
  ranks_[rank].ready = true;
  Note(absl::StrCat("rank ", rank, " is ready to join"), out);
}

void MembershipState::On(const TrainerDead& e, Outcome& out) {
  const int rank = e.rank.value();
  const std::string who = absl::StrCat("process ", Show(e.process), " of rank ", rank);
  const std::string nothing = absl::StrCat(who, " is no member any more: nothing to do");
  if (rank < 0 || rank >= static_cast<int>(ranks_.size())) return Note(nothing, out);
  Place& place = ranks_[rank];
  if (place.successor.has_value() && place.successor->process == e.process) {
    Note(absl::StrCat(who, " died before it took its place"), out);
    Reply(place.successor->request, absl::AbortedError(out.reason), out);
    place.successor.reset();
    return ForgetShapeIfUnused();
  }
  const bool holds = doc_.trainers[rank].incarnation.value() > 0 && doc_.trainers[rank].process == e.process;
  if (!holds || place.liveness == Liveness::kDead) return Note(nothing, out);
  if (place.finished && !place.successor.has_value()) {
    Note(absl::StrCat(who, " has exited; it had finished"), out);  // and is not waited for
    return;
  }
  Set(place, Liveness::kDead);
  Note(absl::StrCat(who, " died"), out);
  if (place.successor.has_value()) InstallTrainer(rank, out);
}

// World size and layout are what the first trainer said; if it died before any epoch had it, the next may
// say.
void MembershipState::ForgetShapeIfUnused() {
  if (formed()) return;
  const bool used =
      std::any_of(ranks_.begin(), ranks_.end(), [](const Place& p) { return p.successor.has_value(); });
  if (used) return;
  doc_.layout_hash = 0;
  if (SeveralHosts()) return;  // the hosts have said how many ranks there are
  doc_.world_size = configured_world_size_;
  doc_.trainers.assign(configured_world_size_, TrainerMember());
  ranks_.assign(configured_world_size_, Place());
}

}  // namespace sherd
