#include "server/host_takeover.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/host_map.h"
#include "core/host_takeover.h"
#include "kernels/optimizer.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "proto/status.h"
#include "runtime/clock.h"
#include "runtime/crc32c.h"
#include "runtime/mutex.h"
#include "server/host_records.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;
using runtime::OwnerRecords;

constexpr absl::Duration kCallPatience = absl::Seconds(10);
// Of the copy as a whole; who sends nothing for as long as kCallPatience is given up.
constexpr absl::Duration kCopyPatience = absl::Hours(24);
constexpr absl::Duration kLookAgain = absl::Milliseconds(20);
// Incarnations: which takeover of the place, something that tells two at once apart, and agents of the host.
constexpr int kTakeoverBits = 40, kAgentBits = 16;

// Reads a stream to its end or until `take` fails, and returns the first error.
template <typename Message>
absl::Status ReadAll(grpc::ClientContext* context, const std::unique_ptr<grpc::ClientReader<Message>>& reader,
                     const std::function<absl::Status(Message&)>& take) {
  absl::Status taken;
  for (Message message; taken.ok() && reader->Read(&message);) taken = take(message);
  if (!taken.ok()) context->TryCancel();
  const absl::Status ended = FromGrpc(reader->Finish());
  return taken.ok() ? ended : taken;
}

class Taker {
 public:
  Taker(const OtherHosts& others, JobMemory& memory, const std::function<bool()>& go_on)
      : others_(others), memory_(memory), here_(memory.place().index), go_on_(go_on) {}

  absl::Status Run();

 private:
  // Whether a host of this place has been part of the job.
  absl::StatusOr<bool> WasHere();
  // Of all others. With an incarnation: cuts the lost host off.
  absl::StatusOr<HostRecords> Ask(uint64_t incarnation);
  absl::Status Tell(const Takeover& plan, const HostRecords& said);
  absl::Status CopyFrom(int host, const Takeover& plan);
  absl::Status Install(int from, const Takeover& plan, const HostRecords& said);
  v1::FenceHostRequest Fence(uint64_t incarnation) const;
  absl::Time Deadline() const { return runtime::SteadyNow() + kCallPatience; }

  const OtherHosts& others_;
  JobMemory& memory_;
  const int here_;
  const std::function<bool()>& go_on_;
  uint64_t incarnation_ = 0;
  v1::StatePiece::Stand stand_;
};

v1::FenceHostRequest Taker::Fence(uint64_t incarnation) const {
  v1::FenceHostRequest request;
  request.set_job(others_.job());
  request.set_host(here_);
  request.set_incarnation(incarnation);
  return request;
}

absl::StatusOr<HostRecords> Taker::Ask(uint64_t incarnation) {
  const v1::FenceHostRequest request = Fence(incarnation);
  HostRecords said(&memory_.spec(), memory_.place().count, here_);
  runtime::Mutex mu;
  const auto ask = [&](int host, OtherHosts::Stub& stub, grpc::ClientContext* context) {
    return ReadAll<v1::HostRecord>(context, stub.FenceHost(context, request), [&](v1::HostRecord& record) {
      runtime::MutexLock lock(mu);
      return said.Add(host, std::move(record));
    });
  };
  if (absl::Status s = others_.ForEach(Deadline(), ask, go_on_); !s.ok()) return s;
  return said;
}

absl::Status Taker::Tell(const Takeover& plan, const HostRecords& said) {
  std::vector<v1::TellRecordRequest> requests;
  const auto request = [&]() -> v1::TellRecordRequest& {
    v1::TellRecordRequest& r = requests.emplace_back();
    r.set_job(others_.job());
    r.set_host(here_);
    r.set_incarnation(incarnation_);
    return r;
  };
  const auto add = [&](int index) -> v1::HostRecord& {
    v1::HostRecord* record = request().mutable_record();
    record->set_index(index);
    return *record;
  };
  // STEP records first: owners look for them before they look for PREPARED.
  for (const auto& [rank, copies] : said.steps()) {
    if (!memory_.IsHere(Rank(rank))) continue;
    for (const std::string& copy : copies) add(rank).set_step(copy);
  }
  for (const int slot : said.LostSlots()) add(slot).set_owner(said.LostPages(slot).back());
  // Whoever lacks more than that gives the step up by itself.
  if (std::count(plan.has_prepared.begin(), plan.has_prepared.end(), false) == 0)
    request().set_cut(Mark::Of(plan.in_hand).word());
  spdlog::info("step {} may have been decided: all other hosts are told what some have of it",
               plan.in_hand.ToString());
  return others_.ForEach(
      Deadline(),
      [&](int host, OtherHosts::Stub&, grpc::ClientContext*) -> absl::Status {
        for (const v1::TellRecordRequest& request : requests) {
          grpc::ClientContext context;
          absl::StatusOr<std::unique_ptr<OtherHosts::Stub>> stub =
              others_.Prepare(host, Deadline(), &context);
          if (!stub.ok()) return stub.status();
          v1::TellRecordResponse response;
          if (absl::Status s = FromGrpc((*stub)->TellRecord(&context, request, &response)); !s.ok()) return s;
        }
        return absl::OkStatus();
      },
      go_on_);
}

absl::Status Taker::CopyFrom(int host, const Takeover& plan) {
  v1::CopyStateRequest request;
  request.set_job(others_.job());
  request.set_host(here_);
  int stands = 0;
  int64_t bytes = 0;
  // No data link is up yet that would say when a cable is cut.
  std::atomic<int64_t> heard{runtime::MonotonicNanos()};
  const auto silent = [&] { return absl::Nanoseconds(runtime::MonotonicNanos() - heard) > kCallPatience; };
  const auto take = [&](v1::StatePiece& piece) -> absl::Status {
    heard = runtime::MonotonicNanos();
    if (piece.has_stand()) {
      ++stands;
      stand_ = std::move(*piece.mutable_stand());
      if (Step(stand_.step()).Next() == plan.in_hand.step) return absl::OkStatus();
      return absl::UnavailableError(absl::StrCat("host ", host, " stands after step ", stand_.step(),
                                                 ", others have step ", plan.in_hand.ToString(), " in hand"));
    }
    char* base = nullptr;
    int64_t room = 0;
    if (piece.rounded() && memory_.compute() != nullptr) {
      base = reinterpret_cast<char*>(memory_.compute());
      room = memory_.layout().total_blocks() * kBlockElements * 2;
    } else if (!piece.rounded() && piece.plane() >= 0 && piece.plane() < memory_.planes()) {
      base = reinterpret_cast<char*>(memory_.plane(piece.plane()));
      room = memory_.plane_blocks(piece.plane()) * kBlockElements * 4;
    }
    const auto size = static_cast<int64_t>(piece.data().size());
    if (base == nullptr || piece.offset() < 0 || size > room || piece.offset() > room - size) {
      return absl::DataLossError(absl::StrCat("host ", host, " sent plane ", piece.plane(), " from byte ",
                                              piece.offset(), ": run one version of Sherd on all hosts"));
    }
    if (runtime::Crc32c(piece.data()) != piece.crc32c())
      return absl::UnavailableError(absl::StrCat("what host ", host, " sent was damaged on its way"));
    piece.data().copy(base + piece.offset(), piece.data().size());
    bytes += size;
    return absl::OkStatus();
  };
  const absl::Status copied = others_.To(
      host, runtime::SteadyNow() + kCopyPatience,
      [&](int, OtherHosts::Stub& stub, grpc::ClientContext* context) {
        return ReadAll<v1::StatePiece>(context, stub.CopyState(context, request), take);
      },
      [&] { return go_on_() && !silent(); });
  if (absl::IsCancelled(copied) && go_on_()) {
    return absl::UnavailableError(absl::StrCat("host ", host, " has said nothing for ",
                                               absl::FormatDuration(kCallPatience), ", after ", bytes,
                                               " bytes of its state"));
  }
  if (!copied.ok()) return copied;
  if (stands != 2)
    return absl::UnavailableError(absl::StrCat("host ", host, " did not send all of its state"));
  spdlog::info("{} bytes of state, after step {}, are from host {}", bytes, stand_.step(), host);
  return absl::OkStatus();
}

absl::Status Taker::Install(int from, const Takeover& plan, const HostRecords& said) {
  const auto bad = [](const auto&... what) {
    return absl::DataLossError(absl::StrCat(what..., ": run one version of Sherd on all hosts"));
  };
  const Step done(stand_.step());
  const size_t counts = memory_.layout().tensors().size() + 1;
  if (static_cast<size_t>(stand_.update_counts_size()) != counts ||
      static_cast<size_t>(stand_.update_counts_odd_size()) != counts) {
    return bad("host ", from, " sent update counts of ", stand_.update_counts_size(), " and ",
               stand_.update_counts_odd_size(), " tensors, the job has ", counts);
  }
  const PageCopy other(&memory_.spec(), stand_.owner());
  if (!other.whole())
    return bad("host ", from, " sent ", stand_.owner().size(), " bytes that are no owner's record");
  for (size_t i = 0; i < counts; ++i) {
    memory_.tensor_steps(Step(0))[i].store(stand_.update_counts(static_cast<int>(i)));
    memory_.tensor_steps(Step(1))[i].store(stand_.update_counts_odd(static_cast<int>(i)));
  }
  // As the others have them now: who looks at the job here finds it where it is.
  for (const auto& [slot, copy] : said.OwnPages()) {
    const absl::StatusOr<OwnerRecords*> page = memory_.owner(Slot(slot));
    if (!page.ok()) return page.status();
    (*page)->Put(copy);
  }
  for (const auto& [rank, copies] : said.steps()) {
    for (const std::string& copy : copies) {
      // What this host's own ranks had recorded of the step in hand they record again.
      const bool here = memory_.IsHere(Rank(rank));
      runtime::RankRecords& records = memory_.rank(Rank(rank));
      if (here && runtime::RankRecords::StepOf(copy) > done) continue;
      if (!records.PutStep(copy))
        return bad("another host sent ", copy.size(), " bytes that are no record of rank ", rank);
    }
  }
  const std::vector<int> slots = said.LostSlots();
  for (size_t i = 0; i < slots.size(); ++i) {
    const absl::StatusOr<OwnerRecords*> page = memory_.owner(Slot(slots[i]));
    if (!page.ok()) return page.status();
    for (const std::string& copy : said.LostPages(slots[i])) (*page)->Put(copy);
    if (const std::optional<Verdict> last = other.records().LastVerdict(); last.has_value())
      (*page)->WriteVerdict(*last);
    (*page)->EnterFrom(other.records(), other.records().Entered());
    if (plan.has_prepared[i]) continue;
    OwnerPrepared prepared;
    prepared.id = plan.in_hand;
    prepared.ranges_epoch = said.about().ranges_epoch();
    prepared.given_up = true;
    (*page)->PublishPrepared(prepared);
  }
  // Its trainers must not write the values that the job began with.
  if (memory_.gather() != nullptr) memory_.gather()->share_written.store(1, std::memory_order_release);
  runtime::ControlPage& control = memory_.control();
  control.initialized.store(1, std::memory_order_release);
  control.agent_incarnation.store(incarnation_, std::memory_order_release);
  return absl::OkStatus();
}

// The first host has memory when anybody has, and knows whom it was connected with.
absl::StatusOr<bool> Taker::WasHere() {
  bool met = false;
  const v1::FenceHostRequest request = Fence(0);
  const absl::Status asked = others_.To(
      0, Deadline(),
      [&](int, OtherHosts::Stub& stub, grpc::ClientContext* context) {
        return ReadAll<v1::HostRecord>(context, stub.FenceHost(context, request),
                                       [&](v1::HostRecord& record) {
                                         met |= record.about().met();
                                         return absl::OkStatus();
                                       });
      },
      go_on_);
  if (!asked.ok()) return asked;
  return met;
}

absl::Status Taker::Run() {
  const absl::StatusOr<bool> was_here = WasHere();
  if (!was_here.ok() || !*was_here) return was_here.status();
  absl::StatusOr<HostRecords> said = Ask(0);
  if (!said.ok()) return said.status();
  const HostGrid grid = memory_.grid();
  std::random_device random;
  incarnation_ = ((said->newest() >> kTakeoverBits) + 1) << kTakeoverBits |
                 uint64_t{random() & ((1u << (kTakeoverBits - kAgentBits)) - 1)} << kAgentBits;
  if (!said->about().initialized()) {  // as good as one that comes for the first time
    said = Ask(incarnation_);
    if (said.ok()) memory_.control().agent_incarnation.store(incarnation_, std::memory_order_release);
    return said.status();
  }
  if (grid.groups() == 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("host ", here_,
                     " lost its memory, and with it the only copy of what it owned: start the job "
                     "again from a checkpoint (sherd run --replicas 1 keeps a second copy)"));
  }
  const kernels::OptimizerInfo& optimizer = kernels::Info(memory_.spec().optimizer);
  if (optimizer.norms || optimizer.directions) {
    return absl::FailedPreconditionError(
        absl::StrCat("host ", here_, " cannot follow one that was lost in a job of ",
                     Name(memory_.spec().optimizer), ": start it again from a checkpoint"));
  }
  spdlog::warn("host {} lost its memory: this one takes its place", here_);
  Takeover plan;
  for (StepId told;;) {
    said = Ask(incarnation_);
    if (!said.ok()) return said.status();
    const absl::StatusOr<std::vector<Survivor>> survivors = said->Survivors();
    if (!survivors.ok()) return survivors.status();
    if (survivors->empty()) return absl::UnavailableError("no other host has an owner of the job yet");
    plan = PlanTakeover(*survivors);
    if (plan.kind == Takeover::kGiveUp) break;
    // They go on by themselves then.
    if (!(told == plan.in_hand)) {
      if (absl::Status s = Tell(plan, *said); !s.ok()) return s;
      told = plan.in_hand;
    }
    if (!go_on_()) return absl::CancelledError("the place was not taken over");
    absl::SleepFor(kLookAgain);
  }
  // One of them has all of the step that is done soon, or is out of reach.
  absl::Status copied;
  std::string problem;  // that was said last
  for (int g = 0; go_on_(); g = (g + 1) % grid.groups()) {
    const int host = grid.Counterpart(here_, g * grid.group);
    if (host == here_) continue;
    copied = CopyFrom(host, plan);
    if (copied.ok()) return Install(host, plan, *said);
    if (!absl::IsUnavailable(copied)) return copied;
    if (copied.message() != problem) {
      problem = std::string(copied.message());
      spdlog::warn("{}: the copy begins again", problem);
    }
    absl::SleepFor(kLookAgain);
  }
  return copied.ok() ? absl::CancelledError("the place was not taken over") : copied;
}

}  // namespace

absl::Status TakeOver(const OtherHosts& others, JobMemory& memory, const std::function<bool()>& go_on) {
  return Taker(others, memory, go_on).Run();
}

}  // namespace sherd::server
