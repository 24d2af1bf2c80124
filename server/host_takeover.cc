#include "server/host_takeover.h"

#include <algorithm>
#include <map>
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
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;
using runtime::OwnerRecords;

constexpr absl::Duration kCallPatience = absl::Seconds(10);
constexpr absl::Duration kLookAgain = absl::Milliseconds(20);
// Incarnations: which takeover of the place, something that tells two at once apart, and agents of the host.
constexpr int kTakeoverBits = 40, kAgentBits = 16;

// A page as another host copied it.
class Page {
 public:
  Page(const JobSpec& spec, const std::string& copy)
      : memory_((OwnerRecords::BytesFor(spec) + 63) / 8),
        records_(&spec, Aligned(reinterpret_cast<char*>(memory_.data()))) {
    whole_ = records_.Put(copy);
  }
  bool whole() const { return whole_; }
  const OwnerRecords& records() const { return records_; }
  OwnerProgress Progress(uint64_t ranges_epoch) const {
    OwnerProgress p{records_.Done(), records_.Rejected(), std::nullopt, {}, {}};
    const OwnerPage page = records_.ReadPage(p.InHand());
    if (page.boundary.n > 0 && page.boundary.ranges_epoch == ranges_epoch)
      p.offered = Mark::Of(page.boundary.before, page.boundary.n);
    p.boundary_done = Mark::Of(page.boundary_done.before, page.boundary_done.n);
    // Of which step it is follows from where the owner stands.
    for (const StepId id : {p.InHand(), StepId{p.done}}) {
      const std::optional<OwnerPrepared> prepared = records_.ReadPrepared(id);
      if (prepared.has_value() && prepared->ranges_epoch == ranges_epoch && !p.prepared.has_value())
        p.prepared = id;
    }
    return p;
  }

 private:
  static char* Aligned(char* at) { return at + (64 - reinterpret_cast<uintptr_t>(at) % 64) % 64; }
  std::vector<uint64_t> memory_;
  OwnerRecords records_;
  bool whole_;
};

// What the others have said.
struct Said {
  v1::HostRecord::About about;
  uint64_t newest = 0;                               // incarnation of any
  std::map<int, std::map<int, std::string>> owners;  // by who said it and slot
  std::map<int, std::vector<std::string>> steps;     // by rank
};

class Taker {
 public:
  Taker(const OtherHosts& others, JobMemory& memory, const std::function<bool()>& go_on)
      : others_(others), memory_(memory), here_(memory.place().index), go_on_(go_on) {}

  absl::Status Run();

 private:
  // Whether a host of this place has been part of the job.
  absl::StatusOr<bool> WasHere();
  // Of all others. With an incarnation: cuts the lost host off.
  absl::StatusOr<Said> Ask(uint64_t incarnation);
  absl::Status Tell(const Takeover& plan, const Said& said);
  absl::Status CopyFrom(int host, const Takeover& plan);
  absl::Status Install(const Takeover& plan, const Said& said);
  std::vector<Survivor> Survivors(const Said& said) const;
  std::vector<int> LostSlots(const Said& said) const;
  // Of a lost slot: all are of one page, in the order in which they were made.
  std::vector<std::string> Copies(const Said& said, int slot) const;
  absl::Time Deadline() const { return runtime::SteadyNow() + kCallPatience; }

  const OtherHosts& others_;
  JobMemory& memory_;
  const int here_;
  const std::function<bool()>& go_on_;
  uint64_t incarnation_ = 0;
  v1::StatePiece::Stand stand_;
};

absl::StatusOr<Said> Taker::Ask(uint64_t incarnation) {
  v1::FenceHostRequest request;
  request.set_job(others_.job());
  request.set_host(here_);
  request.set_incarnation(incarnation);
  Said said;
  runtime::Mutex mu;
  const auto ask = [&](int host, OtherHosts::Stub& stub, grpc::ClientContext* context) {
    const std::unique_ptr<grpc::ClientReader<v1::HostRecord>> reader = stub.FenceHost(context, request);
    v1::HostRecord record;
    while (reader->Read(&record)) {
      runtime::MutexLock lock(mu);
      if (record.has_about()) {
        said.newest = std::max(said.newest, record.about().incarnation());
        if (said.about.host_of_slot().empty()) said.about = record.about();
      } else if (record.has_owner()) {
        said.owners[host][record.index()] = std::move(*record.mutable_owner());
      } else {
        said.steps[record.index()].push_back(std::move(*record.mutable_step()));
      }
    }
    return FromGrpc(reader->Finish());
  };
  if (absl::Status s = others_.ForEach(Deadline(), ask, go_on_); !s.ok()) return s;
  return said;
}

std::vector<int> Taker::LostSlots(const Said& said) const {
  std::vector<int> slots;
  for (int m = 0; m < said.about.host_of_slot_size(); ++m) {
    if (said.about.host_of_slot(m) == here_) slots.push_back(m);
  }
  return slots;
}

std::vector<Survivor> Taker::Survivors(const Said& said) const {
  std::vector<Survivor> survivors;
  for (const auto& [host, pages] : said.owners) {
    Survivor& s = survivors.emplace_back();
    for (const auto& [slot, copy] : pages) {
      const bool lost = said.about.host_of_slot(slot) == here_;
      (lost ? s.lost : s.own).push_back(Page(memory_.spec(), copy).Progress(said.about.ranges_epoch()));
    }
  }
  return survivors;
}

std::vector<std::string> Taker::Copies(const Said& said, int slot) const {
  std::vector<std::pair<OwnerRecords::Marks, std::string>> copies;
  for (const auto& [host, pages] : said.owners) {
    const auto page = pages.find(slot);
    if (page != pages.end())
      copies.emplace_back(Page(memory_.spec(), page->second).records().ReadMarks(), page->second);
  }
  std::sort(copies.begin(), copies.end());
  std::vector<std::string> out;
  for (auto& [marks, copy] : copies) out.push_back(std::move(copy));
  return out;
}

absl::Status Taker::Tell(const Takeover& plan, const Said& said) {
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
  for (const auto& [rank, copies] : said.steps) {
    if (!memory_.IsHere(Rank(rank))) continue;
    for (const std::string& copy : copies) add(rank).set_step(copy);
  }
  for (const int slot : LostSlots(said)) add(slot).set_owner(Copies(said, slot).back());
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
  grpc::ClientContext context;
  absl::StatusOr<std::unique_ptr<OtherHosts::Stub>> stub =
      others_.Prepare(host, runtime::SteadyNow() + absl::Hours(24), &context);
  if (!stub.ok()) return stub.status();
  v1::CopyStateRequest request;
  request.set_job(others_.job());
  request.set_host(here_);
  const std::unique_ptr<grpc::ClientReader<v1::StatePiece>> reader = (*stub)->CopyState(&context, request);
  absl::Status bad;
  int stands = 0;
  int64_t bytes = 0;
  for (v1::StatePiece piece; bad.ok() && reader->Read(&piece);) {
    if (!go_on_()) bad = absl::CancelledError("the host's state was not copied to its end");
    if (piece.has_stand()) {
      ++stands;
      stand_ = std::move(*piece.mutable_stand());
      if (Step(stand_.step()).Next() != plan.in_hand.step)
        bad =
            absl::UnavailableError(absl::StrCat("host ", host, " stands after step ", stand_.step(),
                                                ", others have step ", plan.in_hand.ToString(), " in hand"));
      continue;
    }
    const bool rounded = piece.plane() == -1;
    char* base = nullptr;
    int64_t room = 0;
    if (rounded && memory_.compute() != nullptr) {
      base = reinterpret_cast<char*>(memory_.compute());
      room = memory_.layout().total_blocks() * kBlockElements * 2;
    } else if (piece.plane() >= 0 && piece.plane() < memory_.planes()) {
      base = reinterpret_cast<char*>(memory_.plane(piece.plane()));
      room = memory_.plane_blocks(piece.plane()) * kBlockElements * 4;
    }
    const auto size = static_cast<int64_t>(piece.data().size());
    if (base == nullptr || piece.offset() < 0 || size > room || piece.offset() > room - size) {
      bad = absl::DataLossError(absl::StrCat("host ", host, " sent plane ", piece.plane(), " from byte ",
                                             piece.offset(), ": run one version of Sherd on all hosts"));
    } else if (runtime::Crc32c(piece.data()) != piece.crc32c()) {
      bad = absl::UnavailableError(absl::StrCat("what host ", host, " sent was damaged on its way"));
    } else {
      piece.data().copy(base + piece.offset(), piece.data().size());
      bytes += size;
    }
  }
  if (!bad.ok()) context.TryCancel();
  const absl::Status ended = FromGrpc(reader->Finish());
  if (!bad.ok()) return bad;
  if (!ended.ok()) return OtherHosts::Named(host, ended);
  if (stands != 2)
    return absl::UnavailableError(absl::StrCat("host ", host, " did not send all of its state"));
  spdlog::info("{} bytes of state, after step {}, are from host {}", bytes, stand_.step(), host);
  return absl::OkStatus();
}

absl::Status Taker::Install(const Takeover& plan, const Said& said) {
  const Step done(stand_.step());
  const size_t counts = memory_.layout().tensors().size() + 1;
  if (static_cast<size_t>(stand_.update_counts_size()) != counts ||
      static_cast<size_t>(stand_.update_counts_odd_size()) != counts) {
    return absl::DataLossError("the update counts of another host are not of this job");
  }
  for (size_t i = 0; i < counts; ++i) {
    memory_.tensor_steps(Step(0))[i].store(stand_.update_counts(static_cast<int>(i)));
    memory_.tensor_steps(Step(1))[i].store(stand_.update_counts_odd(static_cast<int>(i)));
  }
  // As the others have them now: who looks at the job here finds it where it is.
  for (const auto& [host, pages] : said.owners) {
    for (const auto& [slot, copy] : pages) {
      if (said.about.host_of_slot(slot) != host) continue;
      const absl::StatusOr<OwnerRecords*> page = memory_.owner(Slot(slot));
      if (!page.ok()) return page.status();
      (*page)->Put(copy);
    }
  }
  for (const auto& [rank, copies] : said.steps) {
    for (const std::string& copy : copies) {
      // What this host's own ranks had recorded of the step in hand they record again.
      const bool here = memory_.IsHere(Rank(rank));
      runtime::RankRecords& records = memory_.rank(Rank(rank));
      if (!here || runtime::RankRecords::StepOf(copy) <= done) records.PutStep(copy);
    }
  }
  const Page other(memory_.spec(), stand_.owner());
  const std::vector<int> slots = LostSlots(said);
  for (size_t i = 0; i < slots.size(); ++i) {
    const absl::StatusOr<OwnerRecords*> page = memory_.owner(Slot(slots[i]));
    if (!page.ok()) return page.status();
    for (const std::string& copy : Copies(said, slots[i])) (*page)->Put(copy);
    if (const std::optional<Verdict> last = other.records().LastVerdict(); last.has_value())
      (*page)->WriteVerdict(*last);
    (*page)->EnterFrom(other.records(), other.records().Entered());
    if (plan.has_prepared[i]) continue;
    OwnerPrepared prepared;
    prepared.id = plan.in_hand;
    prepared.ranges_epoch = said.about.ranges_epoch();
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
  grpc::ClientContext context;
  absl::StatusOr<std::unique_ptr<OtherHosts::Stub>> stub = others_.Prepare(0, Deadline(), &context);
  if (!stub.ok()) return stub.status();
  v1::FenceHostRequest request;
  request.set_job(others_.job());
  request.set_host(here_);
  const std::unique_ptr<grpc::ClientReader<v1::HostRecord>> reader = (*stub)->FenceHost(&context, request);
  bool met = false;
  for (v1::HostRecord record; reader->Read(&record);) met |= record.about().met();
  const absl::Status asked = FromGrpc(reader->Finish());
  if (!asked.ok()) return OtherHosts::Named(0, asked);
  return met;
}

absl::Status Taker::Run() {
  const absl::StatusOr<bool> was_here = WasHere();
  if (!was_here.ok() || !*was_here) return was_here.status();
  absl::StatusOr<Said> said = Ask(0);
  if (!said.ok()) return said.status();
  const HostGrid grid = memory_.grid();
  std::random_device random;
  incarnation_ = ((said->newest >> kTakeoverBits) + 1) << kTakeoverBits |
                 uint64_t{random() & ((1u << (kTakeoverBits - kAgentBits)) - 1)} << kAgentBits;
  if (!said->about.initialized()) {  // as good as one that comes for the first time
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
    const std::vector<Survivor> survivors = Survivors(*said);
    if (survivors.empty() || survivors[0].own.empty())
      return absl::UnavailableError("no other host has an owner of the job yet");
    plan = PlanTakeover(survivors);
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
  for (int g = 0; go_on_(); g = (g + 1) % grid.groups()) {
    const int host = grid.Counterpart(here_, g * grid.group);
    if (host == here_) continue;
    copied = CopyFrom(host, plan);
    if (copied.ok()) return Install(plan, *said);
    if (!absl::IsUnavailable(copied)) return copied;
    absl::SleepFor(kLookAgain);
  }
  return copied.ok() ? absl::CancelledError("the place was not taken over") : copied;
}

}  // namespace

absl::Status TakeOver(const OtherHosts& others, JobMemory& memory, const std::function<bool()>& go_on) {
  return Taker(others, memory, go_on).Run();
}

}  // namespace sherd::server
