#include "client/host_units.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/gather_plan.h"
#include "runtime/clock.h"

namespace sherd::client {
namespace {

constexpr absl::Duration kLookAgain = absl::Milliseconds(20);
constexpr absl::Duration kFirstTold = absl::Milliseconds(1500);
constexpr absl::Duration kTellEvery = absl::Seconds(2);

class HostUnitsSource : public UnitSource {
 public:
  HostUnitsSource(std::shared_ptr<runtime::JobMemory> memory, std::unique_ptr<UnitSource> views,
                  HostUnitsOptions options)
      : memory_(std::move(memory)),
        views_(std::move(views)),
        options_(std::move(options)),
        records_(memory_->rank(options_.rank)),
        units_(memory_->layout().units().size()) {
    for (size_t u = 0; u < units_.size(); ++u) records_.Gather(static_cast<int>(u)).store(0);
    memory_->gather()->bell.Ring();
  }
  ~HostUnitsSource() override {
    for (size_t u = 0; u < units_.size(); ++u) {
      if (units_[u].want.how != UnitWant::kNot) Say(static_cast<int>(u), UnitWant::kNot);
    }
    memory_->gather()->bell.Ring();
  }

  const char* Base(int unit, bool compute) const override { return views_->Base(unit, compute); }
  int64_t Bytes(int unit) const override { return views_->Bytes(unit); }

  void Begin(int unit) override {
    if (!memory_->IsGathered(unit)) return views_->Begin(unit);
    Want(unit, UnitWant::kAhead);
  }

  absl::Status Await(int unit) override {
    if (!memory_->IsGathered(unit)) return views_->Await(unit);
    absl::Status there = BeHere(unit);
    if (!there.ok()) return there;
    views_->Begin(unit);
    return views_->Await(unit);
  }

  absl::Status Renew(int unit) override {
    if (!memory_->IsGathered(unit)) return absl::OkStatus();
    Want(unit, UnitWant::kNow);
    return BeHere(unit);
  }

  void Drop(int unit) override {
    views_->Drop(unit);
    if (!memory_->IsGathered(unit)) return;
    Say(unit, UnitWant::kNot);
    memory_->gather()->bell.Ring();
  }

 private:
  struct Unit {
    UnitWant want;
    absl::Status status;
  };

  void Say(int unit, UnitWant::How how) {
    units_[unit].want.how = how;
    records_.Gather(unit).store(units_[unit].want.word(), std::memory_order_seq_cst);
  }

  // The values that the step in hand computes with.
  void Want(int unit, UnitWant::How how) {
    Unit& u = units_[unit];
    const absl::StatusOr<StepId> done = memory_->DoneByAll();
    const absl::StatusOr<runtime::OwnerRecords*> owner = memory_->owner(Slot(0));
    u.status = done.ok() ? owner.status() : done.status();
    if (!u.status.ok()) return;
    const uint64_t values = UnitValues::Of(done->step.Next(), (*owner)->Decided().import);
    if (u.want.values != values) u.want = {values, 0, UnitWant::kNot};
    ++u.want.times;
    records_.GatherTurn(unit).store(++turns_, std::memory_order_relaxed);
    Say(unit, how);
    memory_->gather()->bell.Ring();
  }

  absl::Status BeHere(int unit) {
    Unit& u = units_[unit];
    if (!u.status.ok()) return u.status;
    runtime::GatherPage& page = *memory_->gather();
    const auto here = [&] { return page.here(unit).load(std::memory_order_seq_cst) >= u.want.values; };
    if (u.want.how != UnitWant::kNow) {
      Say(unit, UnitWant::kNow);
      if (!here()) page.bell.Ring();
    }
    runtime::DoorbellWord& bell = memory_->trainer(options_.rank).bell;
    const absl::Time start = runtime::SteadyNow();
    absl::Time told = start + kFirstTold - kTellEvery;
    for (bool first = true;; first = false) {
      const uint32_t ticket = bell.Listen();
      if (here()) return absl::OkStatus();
      if (memory_->control().shutting_down.load(std::memory_order_acquire) != 0) {
        return u.status = absl::UnavailableError(absl::StrCat(
                   "the job is shutting down (while waiting for parameters of unit ", unit, ")"));
      }
      bell.Wait(ticket, kLookAgain, first ? options_.spin : runtime::SpinPolicy::None());
      const absl::Time now = runtime::SteadyNow();
      if (now - told < kTellEvery) continue;
      told = now;
      if (options_.on_wait) options_.on_wait(now - start, WaitsFor(unit));
    }
  }

  std::string WaitsFor(int unit) const {
    const std::string what = absl::StrCat("parameters of unit ", unit, ", step ",
                                          UnitValues::StepOf(units_[unit].want.values), ": ");
    if (const std::string link = memory_->control().LinkProblem(); !link.empty())
      return absl::StrCat(what, link);
    const auto& trouble = memory_->gather()->trouble;
    if (trouble.state.load(std::memory_order_acquire) == runtime::ControlPage::LinkState::kDown)
      return absl::StrCat(what, trouble.Words());
    return absl::StrCat(what, "other hosts' shares of it");
  }

  const std::shared_ptr<runtime::JobMemory> memory_;
  const std::unique_ptr<UnitSource> views_;
  const HostUnitsOptions options_;
  runtime::RankRecords& records_;
  uint64_t turns_ = 0;
  std::vector<Unit> units_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<UnitSource>> HostUnits(std::shared_ptr<runtime::JobMemory> memory,
                                                      HostUnitsOptions options) {
  absl::StatusOr<std::unique_ptr<UnitSource>> views = SharedUnits(memory);
  if (!views.ok()) return views.status();
  return std::unique_ptr<UnitSource>(
      std::make_unique<HostUnitsSource>(std::move(memory), *std::move(views), std::move(options)));
}

}  // namespace sherd::client
