// Coordinator: what services ask of it.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/reshard_plan.h"
#include "runtime/clock.h"
#include "server/coordinator.h"
#include "server/coordinator_internal.h"
#include "server/import_names.h"

namespace sherd::server {
namespace {

using internal::AnyTrainerAttached;
using internal::DecidedByAll;
using internal::kLookAgain;
using internal::RingSlots;
using internal::Stopping;
using runtime::MemberEntry;
using runtime::MutexLock;

// From when the last owner had done its last step under the old ranges to when the last was ready under the
// new ones. Owners that are still on their way there are waited for, a second at most.
absl::Duration PauseOfChange(runtime::JobMemory& memory, const EpochDoc& doc, absl::Time deadline) {
  deadline = std::min(deadline, runtime::SteadyNow() + absl::Seconds(1));
  runtime::DoorbellWord& bell = memory.control().bell;
  for (;;) {
    const uint32_t ticket = bell.Listen();
    int64_t closed = 0, opened = 0;
    bool all = true;
    for (int m = 0; m < doc.owning_servers; ++m) {
      const absl::StatusOr<runtime::OwnerRecords*> owner = memory.owner(Slot(m));
      const auto change = owner.ok() ? (*owner)->ReadRangesChange() : runtime::OwnerRecords::RangesChange();
      all &= change.ranges_epoch >= doc.ranges_epoch.value();
      closed = std::max(closed, change.closed_ns), opened = std::max(opened, change.opened_ns);
    }
    if (all || runtime::SteadyNow() >= deadline)
      return absl::Nanoseconds(closed == 0 ? 0 : std::max<int64_t>(0, opened - closed));
    bell.Wait(ticket, absl::Milliseconds(5), runtime::SpinPolicy::None());
  }
}

}  // namespace

absl::Status Coordinator::PostAndWait(Event event, const std::string& request, absl::Time deadline,
                                      const Progress& progress) {
  auto call = std::make_shared<Call>();
  std::string told;
  {
    MutexLock lock(mu_);
    calls_[request].push_back(call);
    events_.push_back(std::move(event));
    changed_.SignalAll();
  }
  const auto forget = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    std::vector<std::shared_ptr<Call>>& waiting = calls_[request];
    waiting.erase(std::remove(waiting.begin(), waiting.end(), call), waiting.end());
    if (waiting.empty()) calls_.erase(request);
  };
  for (;;) {
    std::string waits_for;
    {
      MutexLock lock(mu_);
      const absl::Time now = runtime::SteadyNow();
      if (call->done) return call->status;
      if (stop_ || !status_.ok()) return forget(), Stopping();
      waits_for = WaitsFor();
      if (waits_for.empty()) waits_for = state_.Describe(now);
      if (now >= deadline) {
        forget();
        return absl::DeadlineExceededError(absl::StrCat("not done in time: ", waits_for));
      }
      if (!progress || waits_for == told) {
        changed_.WaitFor(mu_, std::min(deadline - now, kLookAgain));
        if (!progress) continue;
      }
    }
    told = waits_for;
    if (!progress(waits_for)) {
      MutexLock lock(mu_);
      forget();
      return absl::CancelledError("the caller has gone");
    }
  }
}

absl::Status Coordinator::Join(const std::string& id, const std::string& address, const std::string& host,
                               const v1::HostShare& share, const ProcessIdentity& process,
                               absl::Time deadline) {
  const std::string request = absl::StrCat("join ", id, " ", Show(process));
  // Nobody waits for its answer, which comes when all hosts are there: a refusal shows in what comes next.
  if (options_.hosts > 1) {
    if (absl::Status s = CheckMoves(HostOr(host), share.address()); !s.ok()) return s;
    Post(HostJoined{{HostOr(host), share.address(), share.ranks(), share.servers()}, share.index(), ""});
  }
  absl::Status joined =
      PostAndWait(ServerJoined{id, address, HostOr(host), process, request}, request, deadline);
  if (joined.ok()) WatchProcess(HostOr(host), process, ServerDead{id, process});
  return joined;
}

absl::Status Coordinator::Leave(const std::string& id, const ProcessIdentity& process,
                                const std::string& token, absl::Time deadline) {
  return PostAndWait(ServerLeft{id, process, token}, token, deadline);
}

absl::Status Coordinator::Heartbeat(const std::string& id, const ProcessIdentity& process) {
  MutexLock lock(mu_);
  const auto is = [&](const ServerMember& m) { return m.id == id && m.process == process; };
  const std::vector<ServerMember> spares = state_.spares();
  if (std::any_of(committed_.servers.begin(), committed_.servers.end(), is) ||
      std::any_of(spares.begin(), spares.end(), is)) {
    return absl::OkStatus();
  }
  return absl::NotFoundError(absl::StrCat("process ", Show(process), " is not server ", id, " of job ",
                                          options_.job, ": join first"));
}

// A place is taken over from the dead, and from one that holds everybody up; not from one that works, by a
// slip of the hand.
absl::Status Coordinator::CheckHolder(runtime::JobMemory& memory, Rank rank, const std::string& host,
                                      const ProcessIdentity& process) {
  if (rank.value() < 0 || rank.value() >= memory.places()) return absl::OkStatus();  // refused later
  const runtime::MemberEntry& entry = memory.trainer(rank);
  const runtime::ProcessIdentity holder = entry.identity();
  const bool works = entry.state.load(std::memory_order_acquire) == MemberEntry::kAttached &&
                     ProcessIdentity{holder.pid, holder.start_ticks} != process &&
                     (host != host_ || runtime::IsAlive(holder));
  if (!works) return absl::OkStatus();
  MutexLock lock(mu_);
  const bool stalled = std::any_of(stalled_.begin(), stalled_.end(), [&](const StallWatch::Stalled& s) {
    return s.trainer && s.place == rank.value();
  });
  if (stalled) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("rank ", rank.value(), " of job ", options_.job, " is held by process ", holder.pid,
                   ", which lives; end it first, or choose another rank or job name"));
}

absl::Status Coordinator::PreparePlace(Rank rank, JobSpec* asked) {
  EpochDoc doc;
  {
    MutexLock lock(mu_);
    doc = committed_;
  }
  if (!doc.trainers_resized) return absl::OkStatus();
  absl::StatusOr<runtime::JobMemory*> there = home_->Memory();
  if (!there.ok()) return there.status();
  // Trainers may count them by a world that is not the job's any more; the job's are what it began with.
  const JobSpec& job = (*there)->spec();
  asked->world_size = job.world_size;
  asked->nominal_samples = job.nominal_samples;
  asked->parts = job.parts;
  return rank.value() < doc.wanted_trainers() ? (*there)->AddRanks(rank.value() + 1) : absl::OkStatus();
}

absl::StatusOr<Coordinator::Attached> Coordinator::Attach(Rank rank, const std::string& from,
                                                          const ProcessIdentity& process, const JobSpec& spec,
                                                          const std::string& token, absl::Time deadline) {
  const std::string host = HostOr(from);
  JobSpec asked = spec;
  if (absl::Status prepared = PreparePlace(rank, &asked); !prepared.ok()) return prepared;
  absl::StatusOr<runtime::JobMemory*> made = home_->MakeMemory(store(), asked);
  if (!made.ok()) return made.status();
  runtime::JobMemory& memory = **made;
  if (absl::Status free = CheckHolder(memory, rank, host, process); !free.ok()) return free;
  {
    MutexLock lock(mu_);
    if (memory_ == nullptr) BeginGeneration(memory.control());
    memory_ = &memory;
    ++attaching_;
    // A boundary that may already be decided belongs to a time without trainers; and what it decided stands.
    const auto open = [&] {
      const Proposals decided = DecidedByAll(memory);
      const std::optional<runtime::Assignment> newest = memory.control().Newest();
      return Proposals{memory.control().boundary.ranges, 0, memory.control().boundary.import}.AnyNewerThan(
                 decided) ||
             (newest.has_value() && newest->epoch < decided.ranges);
    };
    while (!stop_ && runtime::SteadyNow() < deadline && open()) {
      changed_.WaitFor(mu_, std::min(deadline - runtime::SteadyNow(), absl::Milliseconds(10)));
    }
  }
  const TrainerAttached event{rank, host, process, spec.world_size, spec.layout.hash(), token};
  absl::Status placed = PostAndWait(event, token, deadline);
  if (placed.ok()) WatchProcess(host, process, TrainerDead{rank, process});
  Attached out;
  out.spec = memory.spec();
  {
    MutexLock lock(mu_);
    --attaching_;
    if (!placed.ok()) return placed;
    out.epoch = committed_.epoch;
    out.incarnation = committed_.trainers[rank.value()].incarnation;
    out.servers = committed_.owning_servers;
  }
  absl::StatusOr<StepId> done = memory.DoneByAll();
  if (!done.ok()) return done.status();
  out.step = done->step;
  out.initialized = memory.control().initialized.load(std::memory_order_acquire) != 0;
  out.must_initialise = rank == Rank(0) && !out.initialized;
  // The predecessor may have died between publishing and ringing.
  RingSlots(memory.control());
  return out;
}

absl::Status Coordinator::CommitInitial(Rank rank, Incarnation incarnation) {
  runtime::JobMemory* m = memory();
  if (rank != Rank(0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank=", rank.value(), " cannot commit initial values: only rank 0 writes them"));
  }
  if (m == nullptr || m->trainer(rank).incarnation.load(std::memory_order_acquire) != incarnation.value()) {
    return absl::FailedPreconditionError(
        absl::StrCat("incarnation ", incarnation.value(), " of rank 0 does not hold the place"));
  }
  m->control().initialized.store(1, std::memory_order_release);
  for (int r = 0; r < m->places(); ++r) m->trainer(Rank(r)).bell.Ring();
  RingSlots(m->control());
  MutexLock lock(mu_);
  Changed();
  return absl::OkStatus();
}

absl::Status Coordinator::Detach(Rank rank, Incarnation incarnation, bool finished, const std::string& token,
                                 absl::Time deadline) {
  runtime::JobMemory* m = memory();
  if (m == nullptr || rank.value() < 0 || rank.value() >= m->places() ||
      m->trainer(rank).incarnation.load(std::memory_order_acquire) != incarnation.value()) {
    return absl::FailedPreconditionError(absl::StrCat("incarnation ", incarnation.value(), " of rank ",
                                                      rank.value(), " does not hold the place"));
  }
  const runtime::ProcessIdentity who = m->trainer(rank).identity();
  const absl::Status gone =
      PostAndWait(TrainerDetached{rank, {who.pid, who.start_ticks}, finished, token}, token, deadline);
  if (!gone.ok()) return gone;
  uint32_t attached = MemberEntry::kAttached;
  m->trainer(rank).state.compare_exchange_strong(attached,
                                                 finished ? MemberEntry::kFinished : MemberEntry::kVacant);
  RingSlots(m->control());
  MutexLock lock(mu_);
  Changed();
  return absl::OkStatus();
}

absl::StatusOr<Coordinator::Resized> Coordinator::Resize(int servers, Epoch epoch, const std::string& token,
                                                         absl::Time deadline, const Progress& progress) {
  if (servers < 1 || servers > runtime::kMaxSlots) {
    return absl::InvalidArgumentError(
        absl::StrCat("servers=", servers, " is not in 1..", runtime::kMaxSlots));
  }
  return Operate(ResizeRequested{servers, token}, epoch, token, deadline, progress);
}

absl::StatusOr<Coordinator::Resized> Coordinator::ResizeTrainers(int trainers, Step from_step,
                                                                 bool give_up_step, Epoch epoch,
                                                                 const std::string& token,
                                                                 absl::Time deadline,
                                                                 const Progress& progress) {
  if (trainers < options_.min_trainers || trainers > options_.max_trainers) {
    return absl::InvalidArgumentError(
        absl::StrCat("trainers=", trainers, " is not in ", options_.min_trainers, "..", options_.max_trainers,
                     ", which this job was started for (`sherd run --min --max`)"));
  }
  runtime::JobMemory* const m = memory();
  if (m != nullptr && !m->spec().reduction.groups.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the job sums its gradients in ", m->spec().reduction.groups.size(),
        " groups of ranks (--reduce-groups), which fixes their number at ", m->spec().world_size));
  }
  const int virtual_ranks = m == nullptr ? 0 : m->spec().virtual_ranks;
  if (virtual_ranks % trainers != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("trainers=", trainers, " do not divide the job's ", virtual_ranks, " virtual ranks"));
  }
  return Operate(ResizeRequested{0, token, trainers, from_step, give_up_step}, epoch, token, deadline,
                 progress);
}

absl::StatusOr<Coordinator::Resized> Coordinator::Drain(const std::string& id, Epoch epoch,
                                                        const std::string& token, absl::Time deadline,
                                                        const Progress& progress) {
  return Operate(DrainRequested{id, token}, epoch, token, deadline, progress);
}

absl::StatusOr<Coordinator::Resized> Coordinator::Operate(Event event, Epoch epoch, const std::string& token,
                                                          absl::Time deadline, const Progress& progress) {
  if (absl::Status s = runtime::CheckOneHost({0, options_.hosts}, "a resize or drain"); !s.ok()) return s;
  const absl::Time begun = runtime::SteadyNow();
  EpochDoc before;
  {
    MutexLock lock(mu_);
    before = committed_;
  }
  if (epoch.value() != 0 && epoch != before.epoch) {
    return absl::FailedPreconditionError(
        absl::StrCat("epoch ", epoch.value(), " is stale: the job is in epoch ", before.epoch.value()));
  }
  absl::Status done = PostAndWait(std::move(event), token, deadline, progress);
  if (!done.ok()) return done;
  Resized out;
  out.duration = runtime::SteadyNow() - begun;
  EpochDoc after;
  runtime::JobMemory* m;
  {
    MutexLock lock(mu_);
    after = committed_;
    m = memory_;
  }
  out.epoch = after.epoch;
  if (m == nullptr) return out;
  if (after.ranges_epoch != before.ranges_epoch && AnyTrainerAttached(*m))
    out.pause = PauseOfChange(*m, after, deadline);
  if (const std::optional<runtime::Assignment> a = m->control().Newest();
      a.has_value() && a->from_step.value() > 0) {
    out.step = Step(a->from_step.value() - 1);
  }
  if (before.owning_servers < 1) return out;
  const absl::StatusOr<ReshardPlan> plan =
      PlanReshard(Assignment::Uniform(m->layout(), before.owning_servers),
                  Assignment::Uniform(m->layout(), after.owning_servers));
  if (plan.ok()) {
    plan->ForEachMove([&](const BlockMove& move) {
      m->layout().ForEachRun(move.blocks, [&](int t, BlockRange run) {
        out.changed_elements +=
            (run.size() - 1) * kBlockElements + m->layout().tensors()[t].ElementsIn(run.end - 1);
      });
    });
  }
  return out;
}

absl::StatusOr<Step> Coordinator::StoreImport(const std::string& token, const NameImport& name_it,
                                              absl::Time deadline) {
  runtime::JobMemory* m = memory();
  if (m == nullptr) return absl::FailedPreconditionError("the job has no state yet: no trainer has attached");
  runtime::ControlPage& control = m->control();
  if (control.initialized.load(std::memory_order_acquire) == 0) {
    return absl::FailedPreconditionError(
        "the job has no values yet: rank 0 has not written the initial ones");
  }
  uint64_t id = 0;
  {
    // One at a time, and never beside a resize: what a boundary decides must be one thing or the other.
    MutexLock lock(mu_);
    const auto outstanding = [&] {
      const Proposals decided = DecidedByAll(*m);
      const Proposals proposed = control.proposals.Read();
      return proposed.import > decided.import || proposed.ranges > decided.ranges;
    };
    for (;;) {
      const auto same =
          std::find_if(imports_.begin(), imports_.end(), [&](const auto& i) { return i.first == token; });
      if (same != imports_.end()) id = same->second;
      if (id != 0 || (!naming_import_ && !outstanding())) break;
      if (stop_) return Stopping();
      if (runtime::SteadyNow() >= deadline)
        return absl::DeadlineExceededError("another import or a resize is under way; nothing was changed");
      changed_.WaitFor(mu_, std::min(deadline - runtime::SteadyNow(), absl::Milliseconds(10)));
    }
    naming_import_ = id == 0;
  }
  if (id != 0) return AwaitImport(*m, id, deadline);
  id = control.proposals.Read().import + 1;
  const absl::Status named = name_it(id, control.import_generation.load(std::memory_order_acquire));
  {
    MutexLock lock(mu_);
    naming_import_ = false;
    if (stop_) return Stopping();  // a successor may have begun already
    if (!named.ok()) {
      // What has the name on some host goes.
      control.import_generation.fetch_add(1, std::memory_order_acq_rel);
      m->RingAgent();
      return named;
    }
    control.proposals.import.store(id, std::memory_order_release);
    imports_.emplace_back(token, id);
    if (imports_.size() > 64) imports_.pop_front();
    changed_.SignalAll();
  }
  Look();  // opens a boundary if no trainer is there
  RingSlots(control);
  return AwaitImport(*m, id, deadline);
}

absl::StatusOr<Step> Coordinator::AwaitImport(runtime::JobMemory& memory, uint64_t id, absl::Time deadline) {
  runtime::DoorbellWord& bell = memory.control().bell;
  for (;;) {
    const uint32_t ticket = bell.Listen();
    if (DecidedByAll(memory).import >= id) break;
    {
      MutexLock lock(mu_);
      if (stop_) return Stopping();
    }
    if (runtime::SteadyNow() >= deadline) {
      return absl::DeadlineExceededError(
          "the values are whole and will be stored with the next step, which has not ended in time");
    }
    bell.Wait(ticket, std::min(deadline - runtime::SteadyNow(), kLookAgain), runtime::SpinPolicy::None());
  }
  // Not the step that is done by now: the job may have gone on since.
  return Step(memory.control().import_steps[id % runtime::ControlPage::kImportSteps].load());
}

}  // namespace sherd::server
