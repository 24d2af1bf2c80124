#include "server/coordinator.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/epoch_record.h"
#include "runtime/clock.h"
#include "runtime/process_identity.h"
#include "server/coordinator_internal.h"
#include "server/import_names.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

using internal::AnyTrainerAttached;
using internal::DecidedByAll;
using internal::kLookAgain;
using internal::OnThisHost;
using internal::RingSlots;
using internal::Stopping;
using runtime::MemberEntry;
using runtime::MutexLock;

std::string HostName() {
  char name[256] = {};
  ::gethostname(name, sizeof(name) - 1);
  return name;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Start(Options options, JobHome* home,
                                                                runtime::ExitWatch* watch) {
  absl::StatusOr<std::vector<std::string>> epochs = home->store().List("epoch/");
  if (!epochs.ok()) return epochs.status();
  absl::StatusOr<MembershipState> state = absl::InternalError("unset");
  if (epochs->empty()) {
    state = MembershipState::Create({options.job, options.expected_servers, 0, options.hosts});
  } else {
    absl::StatusOr<std::string> bytes = home->store().Get(epochs->back());
    if (!bytes.ok()) return bytes.status();
    absl::StatusOr<EpochDoc> doc = DecodeEpochDoc(*bytes);
    if (!doc.ok()) return doc.status();
    state = MembershipState::Restore(*std::move(doc));
  }
  if (!state.ok()) return state.status();
  std::unique_ptr<Coordinator> c(new Coordinator(std::move(options), home, watch, *std::move(state)));
  c->run_ = std::thread([self = c.get()] { self->Run(); });
  c->monitor_ = std::thread([self = c.get()] { self->Monitor(); });
  return c;
}

Coordinator::Coordinator(Options options, JobHome* home, runtime::ExitWatch* watch, MembershipState state)
    : options_(std::move(options)),
      home_(home),
      watch_(watch),
      host_(options_.host.empty() ? HostName() : options_.host),
      state_(std::move(state)),
      snapshots_(options_.others) {
  MutexLock lock(mu_);
  committed_ = state_.doc();
  // Not OK: no trainer has attached yet.
  if (absl::StatusOr<runtime::JobMemory*> memory = home_->Memory(); memory.ok()) {
    memory_ = *memory;
    BeginGeneration(memory_->control());
    memory_->RingAgent();
  }
  if (!state_.formed()) return;
  events_.push_back(Recovered{});
  // Servers join anew, trainers do not: the process that stands in the document is looked up instead.
  for (int r = 0; r < committed_.wanted_trainers(); ++r) {
    const TrainerMember& t = committed_.trainers[r];
    // Of another host: if it is gone, the servers there say so.
    if (!t.ready || (t.host == host_ && !runtime::IsAlive(OnThisHost(t.process)))) continue;
    events_.push_back(TrainerAttached{Rank(r), t.host, t.process, committed_.wanted_trainers(),
                                      committed_.layout_hash, "still there"});
  }
}

void Coordinator::Stop() {
  runtime::JobMemory* memory;
  {
    MutexLock lock(mu_);
    stop_ = true;
    memory = memory_;
    changed_.SignalAll();
  }
  if (memory != nullptr) memory->control().bell.Ring();
}

bool Coordinator::stopped() const {
  MutexLock lock(mu_);
  return stop_;
}

Coordinator::~Coordinator() {
  if (run_.joinable()) End();
}

void Coordinator::End() {
  Stop();
  run_.join();
  monitor_.join();
  std::map<std::pair<int64_t, uint64_t>, runtime::ExitWatch::Id> watched;
  {
    MutexLock lock(mu_);
    watched.swap(watched_);
  }
  for (const auto& w : watched) watch_->Cancel(w.second);
}

runtime::JobMemory* Coordinator::memory() const {
  MutexLock lock(mu_);
  return memory_;
}

absl::Status Coordinator::status() const {
  MutexLock lock(mu_);
  return status_;
}

bool Coordinator::TrainersAttached() const {
  runtime::JobMemory* m = memory();
  return m != nullptr && AnyTrainerAttached(*m);
}

void Coordinator::Changed() {
  ++version_;
  changed_.SignalAll();
}

void Coordinator::Post(Event event) {
  MutexLock lock(mu_);
  events_.push_back(std::move(event));
  changed_.SignalAll();
}

// ---- Carrying out

void Coordinator::Run() {
  for (;;) {
    Event event;
    {
      MutexLock lock(mu_);
      while (!stop_ && (events_.empty() || !status_.ok())) changed_.Wait(mu_);
      if (stop_) return;
      event = std::move(events_.front());
      events_.pop_front();
    }
    Handle(event);
  }
}

void Coordinator::Handle(const Event& event) {
  ApplyToMemory();
  Outcome outcome;
  {
    MutexLock lock(mu_);
    outcome = state_.Apply(event, runtime::SteadyNow());
  }
  spdlog::info("coordinator: {}: {}", Show(event), outcome.reason);
  NoteDeath(event);
  for (const MembershipEffect& effect : outcome.effects) {
    absl::visit([this](const auto& e) { Do(e); }, effect);
    MutexLock lock(mu_);
    if (stop_ || !status_.ok()) return;
  }
  FollowMembers();
  MutexLock lock(mu_);
  Changed();
}

// Waits for a store that is away or full: what was decided still holds, and training does not need it.
absl::Status Coordinator::Commit(const EpochDoc& doc) {
  const std::string key = EpochKey(doc.epoch);
  const std::string bytes = EncodeEpochDoc(doc);
  for (;;) {
    absl::Status stored = store().CreateIfAbsent(key, bytes);
    if (absl::IsAlreadyExists(stored)) {
      // An error after the document was stored makes the same commit come again.
      absl::StatusOr<std::string> there = store().Get(key);
      if (there.ok() && *there == bytes) stored = absl::OkStatus();
      if (absl::IsUnavailable(there.status())) stored = there.status();
    }
    MutexLock lock(mu_);
    const bool waits = absl::IsUnavailable(stored) || absl::IsResourceExhausted(stored);
    std::string before = std::exchange(commit_waits_, "");
    if (waits && stop_) return Stopping();
    if (!waits) return stored;
    commit_waits_ = absl::StrCat("waiting for the store to take epoch ", doc.epoch.value(), " (", doc.reason,
                                 "): ", stored.message());
    if (commit_waits_ != before) spdlog::warn("coordinator: {}", commit_waits_);
    changed_.WaitFor(mu_, kLookAgain);
  }
}

void Coordinator::Do(const CommitEpoch& effect) {
  const absl::Status stored = Commit(effect.doc);
  // It leads no longer: whoever does goes on from what is in the store.
  if (absl::IsAborted(stored) || absl::IsUnavailable(stored)) return Stop();
  if (!stored.ok()) {
    spdlog::error("coordinator: epoch {} cannot be committed: {}", effect.doc.epoch.value(),
                  stored.ToString());
    MutexLock lock(mu_);
    status_ = stored;
    changed_.SignalAll();
    return;
  }
  {
    MutexLock lock(mu_);
    committed_ = effect.doc;
  }
  ApplyToMemory();
}

void Coordinator::Do(const MustBeDead& effect) {
  const ProcessIdentity process = effect.process;
  if (effect.host != host_) {
    MutexLock lock(mu_);
    doomed_.insert({effect.host, {process.pid, process.start}});
    Changed();
    return;
  }
  if (effect.server_id.empty()) {
    WatchProcess(effect.host, process, TrainerDead{effect.rank, process});
  } else {
    WatchProcess(effect.host, process, ServerDead{effect.server_id, process});
  }
  // Only sends the signal: the watch tells when the process has ended.
  const absl::Status killed = runtime::KillAndWait(OnThisHost(process), runtime::SteadyNow());
  if (!killed.ok() && !absl::IsDeadlineExceeded(killed)) spdlog::warn("coordinator: {}", killed.ToString());
}

// The monitor proposes what the document says, when nothing else is outstanding.
void Coordinator::Do(const ProposeAssignment&) { Look(); }

void Coordinator::Do(const RetireServer& effect) {
  MutexLock lock(mu_);
  retired_[effect.id] = effect.process;
}

void Coordinator::Do(const Answer& effect) {
  MutexLock lock(mu_);
  const auto it = calls_.find(effect.request);
  if (it == calls_.end()) return;
  for (const std::shared_ptr<Call>& call : it->second) {
    call->done = true;
    call->status = effect.status;
  }
  calls_.erase(it);
  changed_.SignalAll();
}

void Coordinator::NoteDeath(const Event& event) {
  runtime::JobMemory* m = memory();
  if (const auto* dead = absl::get_if<TrainerDead>(&event); dead != nullptr && m != nullptr) {
    MemberEntry& entry = m->trainer(dead->rank);
    uint32_t attached = MemberEntry::kAttached;
    if (entry.identity() == OnThisHost(dead->process))
      entry.state.compare_exchange_strong(attached, MemberEntry::kDead);
  }
  MutexLock lock(mu_);
  if (const auto* dead = absl::get_if<ServerDead>(&event); dead != nullptr) {
    const auto it = retired_.find(dead->id);
    if (it != retired_.end() && it->second == dead->process) retired_.erase(it);
  }
}

// After a restart nobody has joined anew, but everybody who is in the document may die.
void Coordinator::FollowMembers() {
  EpochDoc doc;
  {
    MutexLock lock(mu_);
    doc = committed_;
  }
  for (const ServerMember& s : doc.servers) WatchProcess(s.host, s.process, ServerDead{s.id, s.process});
  for (size_t r = 0; r < doc.trainers.size(); ++r) {
    const TrainerMember& t = doc.trainers[r];
    if (t.ready) WatchProcess(t.host, t.process, TrainerDead{Rank(static_cast<int32_t>(r)), t.process});
  }
}

void Coordinator::WatchProcess(const std::string& host, const ProcessIdentity& process, Event when_dead) {
  if (host != host_) return;
  const std::pair<int64_t, uint64_t> key(process.pid, process.start);
  {
    MutexLock lock(mu_);
    if (process.pid == 0 || watched_.count(key) != 0) return;
    watched_[key] = 0;
  }
  absl::StatusOr<runtime::ExitWatch::Id> id = watch_->Watch(
      OnThisHost(process), [this, when_dead](const runtime::ProcessIdentity&) { Post(when_dead); });
  MutexLock lock(mu_);
  if (id.ok()) {
    watched_[key] = *id;
  } else {
    watched_.erase(key);
    spdlog::error("coordinator: process {} cannot be watched: {}", Show(process), id.status().ToString());
  }
}

void Coordinator::ApplyToMemory() {
  EpochDoc doc;
  runtime::JobMemory* m;
  {
    MutexLock lock(mu_);
    doc = committed_;
    m = memory_;
  }
  if (m == nullptr || doc.epoch.value() == 0) return;
  runtime::ControlPage& control = m->control();
  for (size_t s = 0; s < doc.servers.size() && s < runtime::kMaxSlots; ++s) {
    const ServerMember& member = doc.servers[s];
    if (control.servers[s].identity() != OnThisHost(member.process)) {
      control.servers[s].Set(OnThisHost(member.process), member.incarnation.value(), MemberEntry::kAttached);
    }
  }
  for (size_t r = 0; r < doc.trainers.size(); ++r) {
    const TrainerMember& member = doc.trainers[r];
    MemberEntry& entry = m->trainer(Rank(static_cast<int32_t>(r)));
    if (member.incarnation.value() > entry.incarnation.load(std::memory_order_acquire)) {
      entry.Set(OnThisHost(member.process), member.incarnation.value(), MemberEntry::kAttached);
    }
    // Let go by a resize, or not wanted after all by one that was taken back: it hears of it here.
    if (static_cast<int>(r) < doc.wanted_trainers()) continue;
    for (const uint32_t was : {MemberEntry::kAttached, MemberEntry::kDead}) {
      uint32_t state = was;
      if (entry.state.compare_exchange_strong(state, MemberEntry::kFinished)) entry.bell.Ring();
    }
  }
  if (!control.Newest().has_value()) {
    const absl::StatusOr<std::optional<v1::RestoreRecord>> restored = home_->Restored();
    absl::Status begun = restored.status();
    if (begun.ok()) {
      const Step done(restored->has_value() ? (*restored)->step() : 0);
      begun = m->BeginFirstAssignment(doc.ranges_epoch.value(), *SlotHosts(doc, doc.owning_servers), done);
    }
    if (!begun.ok()) {
      spdlog::error("coordinator: {}", begun.ToString());
      return;  // the next event tries again
    }
    control.proposals.ranges.store(doc.ranges_epoch.value(), std::memory_order_release);
  }
  control.epoch.store(doc.epoch.value(), std::memory_order_release);
  RingSlots(control);
}

// ---- Watching the control page

void Coordinator::Monitor() {
  for (;;) {
    runtime::JobMemory* m = nullptr;
    {
      // The control page's bell rings at every step: it is listened to only while something is to be decided.
      MutexLock lock(mu_);
      const auto awaited = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return committed_.proposed_epoch.value() != 0 || committed_.desired_trainers > committed_.world_size;
      };
      if (!stop_ && !awaited()) changed_.WaitFor(mu_, kLookAgain);
      if (stop_) return;
      if (awaited()) m = memory_;
    }
    const uint32_t ticket = m == nullptr ? 0 : m->control().bell.Listen();
    Look();
    if (m != nullptr) m->control().bell.Wait(ticket, kLookAgain, runtime::SpinPolicy::None());
  }
}

void Coordinator::Look() {
  runtime::JobMemory* m = memory();
  if (m != nullptr) {
    LookAtProposals(*m);
    SweepPools(*m);  // as each host does
  }
  MutexLock lock(mu_);
  if (m == nullptr && committed_.proposed_epoch.value() != 0 && events_.empty()) {
    // Nobody owns anything yet: the new number of owners holds at once.
    events_.push_back(RangesApplied{committed_.proposed_epoch});
    changed_.SignalAll();
  }
  if (m != nullptr) LookForReady(*m);
  const absl::Time now = runtime::SteadyNow();
  if (m != nullptr && now - stall_looked_ >= kLookAgain) {
    stall_looked_ = now;
    LookForStalled(*m, now);
    if (const absl::StatusOr<StepId> done = m->DoneByAll(); done.ok()) {
      import_sweeper_.Sweep(*m, DecidedByAll(*m).import, done->step);
    }
  }
  std::string described = WaitsFor();
  if (described != described_) {
    described_ = std::move(described);
    Changed();
  }
}

void Coordinator::LookForStalled(runtime::JobMemory& memory, absl::Time now) {
  std::vector<StallWatch::Stalled> stalled = stall_watch_.Look(memory, now);
  const auto among = [](const std::vector<StallWatch::Stalled>& some, const StallWatch::Stalled& s) {
    return std::any_of(some.begin(), some.end(), [&](const StallWatch::Stalled& o) {
      return o.trainer == s.trainer && o.place == s.place;
    });
  };
  for (const StallWatch::Stalled& s : stalled) {
    if (!among(stalled_, s)) spdlog::warn("coordinator: stalled: {}", ShowStalled(s));
  }
  for (const StallWatch::Stalled& s : stalled_) {
    if (!among(stalled, s)) spdlog::info("coordinator: no longer stalled: {}", ShowPlace(s));
  }
  // For how long is news, too: `sherd run --stall-timeout` goes by it.
  if (!stalled.empty() || !stalled_.empty()) Changed();
  stalled_ = std::move(stalled);
}

void Coordinator::LookForReady(runtime::JobMemory& memory) {
  if (committed_.proposed_epoch.value() != 0 || !events_.empty()) return;
  for (int r = committed_.world_size; r < committed_.desired_trainers; ++r) {
    const MemberEntry& entry = memory.trainer(Rank(r));
    const uint64_t incarnation = entry.incarnation.load(std::memory_order_acquire);
    // One that was let go before may not have exited yet: it does not come back.
    const bool ready = incarnation != 0 &&
                       entry.state.load(std::memory_order_acquire) == MemberEntry::kAttached &&
                       entry.ready.load(std::memory_order_acquire) == incarnation &&
                       incarnation == committed_.trainers[r].incarnation.value();
    if (!ready || state_.trainer_ready(Rank(r))) continue;
    events_.push_back(TrainerReady{Rank(r), committed_.trainers[r].process});
    changed_.SignalAll();
  }
}

void Coordinator::LookAtProposals(runtime::JobMemory& memory) {
  runtime::ControlPage& control = memory.control();
  bool ring = false;
  {
    MutexLock lock(mu_);
    const std::optional<runtime::Assignment> newest = control.Newest();
    if (!newest.has_value()) return;
    const Proposals decided = DecidedByAll(memory);
    const bool proposed = committed_.proposed_epoch.value() != 0;
    const uint64_t want = proposed ? committed_.proposed_epoch.value() : committed_.ranges_epoch.value();
    if (control.proposals.Read().ranges < want && !naming_import_ &&
        control.proposals.Read().import <= decided.import) {
      control.PutAssignment(
          want, *SlotHosts(committed_, proposed ? committed_.desired_servers : committed_.owning_servers),
          committed_.proposed_world_size(), proposed ? committed_.desired_from_step : Step(0));
      control.proposals.ranges.store(want, std::memory_order_release);
      ring = true;
    }
    const bool attached = AnyTrainerAttached(memory);
    if (attaching_ == 0 && (!attached || committed_.give_up_step)) {
      Proposals now = control.proposals.Read();
      if (attached) now.import = 0;  // waits for a verdict
      const absl::StatusOr<StepId> done = memory.DoneByAll();
      if (!done.ok() || !control.MayBegin(now.ranges, done->step.Next())) now.ranges = 0;
      const Proposals boundary = control.boundary.Read();
      ring |= now.ranges > boundary.ranges || now.import > boundary.import;
      control.boundary.ranges.store(std::max(now.ranges, boundary.ranges), std::memory_order_release);
      control.boundary.import.store(std::max(now.import, boundary.import), std::memory_order_release);
    }
    if (proposed && newest->epoch == want) {
      // Slots that go have still the last step before to finish: whoever loses one is told to exit.
      const absl::StatusOr<StepId> done = memory.DoneByAll();
      const bool left = done.ok() && newest->from_step <= done->step.Next();
      if (left && decided.ranges >= want && applied_posted_ != want) {
        applied_posted_ = want;
        events_.push_back(RangesApplied{Epoch(want)});
        changed_.SignalAll();
      }
    }
  }
  if (ring) RingSlots(control);
}

}  // namespace sherd::server
