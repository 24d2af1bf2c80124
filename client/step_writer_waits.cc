// StepWriter: waiting, and whom for.
#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/step_writer.h"
#include "runtime/clock.h"
#include "runtime/process_stat.h"

namespace sherd::client {
namespace {

constexpr absl::Duration kLookAgain = absl::Milliseconds(20);
constexpr absl::Duration kFirstTold = absl::Milliseconds(1500);
constexpr absl::Duration kTellEvery = absl::Seconds(2);
// What a unit takes between hosts, and more.
constexpr absl::Duration kAheadAfter = absl::Milliseconds(200);

// "rank 1 (process 4711)", and that it is stopped if it is.
std::string Who(const runtime::MemberEntry& entry, absl::string_view what, int place) {
  const runtime::ProcessIdentity process = entry.identity();
  if (process.pid == 0) return absl::StrCat(what, place);
  const bool stopped = runtime::IsStopped(process.pid, process.start_ticks);
  return absl::StrCat(what, place, " (process ", process.pid, stopped ? ", which is stopped by a signal" : "",
                      ")");
}

}  // namespace

bool StepWriter::SomeoneAhead() const {
  // How far ranks on other hosts are does not show here: there may be one if it takes so long.
  if (owner_hosts_.hosts() > 1 && runtime::SteadyNow() - waiting_since_ >= kAheadAfter) return true;
  for (int r = 0; r < world_size_; ++r) {
    if (r == rank_.value()) continue;
    for (size_t u = 0; u < counted_.size(); ++u) {
      if (memory_->rank(Rank(r)).Delivered(u).PartsOf(id_) > delivered_[u]) return true;
    }
  }
  return false;
}

std::string StepWriter::WaitsToConsume(int unit, Mark mark) {
  for (int r = 0; r < world_size_; ++r) {
    const runtime::RankRecords& other = memory_->rank(Rank(r));
    if (!(other.Delivered(unit) < mark) || other.HasStep(id_.step).has_value()) continue;
    return absl::StrCat(Who(memory_->trainer(Rank(r)), "rank ", r), ": gradients of unit ", unit, ", step ",
                        id_.step.value());
  }
  for (size_t m = 0; m < owners_.size(); ++m) {
    const BlockRange blocks = memory_->layout().units()[unit].blocks;
    if (Owned(blocks, Slot(static_cast<int>(m)), owner_hosts_).empty()) continue;
    if (Mark(owners_[m]->Consumed(unit).load(std::memory_order_relaxed)) < mark) {
      return absl::StrCat(Who(memory_->control().servers[m], "the server of slot ", m), ": the sum of unit ",
                          unit, ", step ", id_.step.value());
    }
  }
  return "";
}

std::string StepWriter::WaitsFor() {
  const std::optional<runtime::Assignment> a = memory_->control().AssignmentFor(id_.step);
  if (!a.has_value()) return "servers";
  // Without a link nothing comes from the hosts behind it.
  if (std::string link = memory_->control().LinkProblem(); !link.empty()) return link;
  std::string text;
  for (int m = 0; m < a->servers; ++m) {
    const runtime::MemberEntry& entry = memory_->control().servers[m];
    absl::StatusOr<runtime::OwnerRecords*> o = memory_->owner(Slot(m));
    if (!o.ok()) continue;
    if (memory_->IsHere(Slot(m), a->hosts) && !runtime::IsAlive(entry.identity())) {
      return absl::StrCat("slot ", m, ", whose server (pid ", entry.identity().pid, ") has died");
    }
    if ((*o)->Done() < id_ && text.empty()) {
      const std::string waits = (*o)->WaitsFor();
      text = Who(entry, "the server of slot ", m);
      if (!waits.empty()) absl::StrAppend(&text, ", which waits for ", waits);
    }
  }
  for (size_t u = 0; u < delivered_.size(); ++u) {
    const Mark wanted(records_.Wanted(static_cast<int>(u)).load(std::memory_order_relaxed));
    const std::string whom = wanted.word() == 0 ? "" : WaitsToConsume(static_cast<int>(u), wanted);
    if (!whom.empty()) text = whom;
  }
  for (int r = 0; r < world_size_; ++r) {
    const runtime::MemberEntry& entry = memory_->trainer(Rank(r));
    if (memory_->IsHere(Rank(r)) &&
        entry.state.load(std::memory_order_acquire) == runtime::MemberEntry::kAttached &&
        !runtime::IsAlive(entry.identity())) {
      return absl::StrCat("rank ", r, ", whose process (pid ", entry.identity().pid, ") has died");
    }
  }
  return text;
}

absl::Status StepWriter::WaitUntil(absl::string_view what, const std::function<bool()>& ready) {
  runtime::DoorbellWord& bell = memory_->trainer(rank_).bell;
  const absl::Time start = runtime::SteadyNow();
  absl::Time told = start + kFirstTold - kTellEvery;
  waiting_since_ = start;
  bool first = true;
  for (;;) {
    const uint32_t ticket = bell.Listen();
    if (ready()) return absl::OkStatus();
    if (memory_->control().shutting_down.load(std::memory_order_acquire) != 0) {
      return absl::UnavailableError(absl::StrCat("the job is shutting down (while waiting for ", what, ")"));
    }
    bell.Wait(ticket, kLookAgain, first ? options_.spin : runtime::SpinPolicy::None());
    first = false;
    const absl::Time now = runtime::SteadyNow();
    if (now - start > options_.timeout) {
      return absl::DeadlineExceededError(
          absl::StrCat("waited ", absl::FormatDuration(now - start), " for ", what, ": ", WaitsFor()));
    }
    if (now - told >= kTellEvery) {
      told = now;
      if (options_.on_wait) options_.on_wait(now - start, absl::StrCat(what, ": ", WaitsFor()));
    }
  }
}

absl::Status StepWriter::WaitDone(StepId id, bool* rejected) {
  const auto done = [&] {
    absl::StatusOr<std::vector<runtime::OwnerRecords*>> owners = Owners(id.step);
    if (!owners.ok()) return false;
    bool all_done = true, all_rejected = true;
    for (const runtime::OwnerRecords* o : *owners) {
      all_done &= !(o->Done() < id);
      all_rejected &= o->Rejected().step == id.step && !(o->Rejected() < id);
    }
    *rejected = !all_done && all_rejected;
    return all_done || all_rejected;
  };
  return WaitUntil(absl::StrCat("step ", id.ToString()), done);
}

absl::Status StepWriter::WaitForRanks(StepId id) {
  if (id.attempt == 0) return absl::OkStatus();
  return WaitUntil(absl::StrCat("the ranks of step ", id.ToString()), [&] {
    absl::StatusOr<std::vector<runtime::OwnerRecords*>> owners = Owners(id.step);
    return owners.ok() && std::all_of(owners->begin(), owners->end(), [&](const runtime::OwnerRecords* o) {
             return o->Decided().ranges <= owners_epoch_;
           });
  });
}

}  // namespace sherd::client
