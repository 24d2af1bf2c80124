#include "server/engine.h"

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "core/host_map.h"
#include "runtime/clock.h"
#include "server/snapshot_reader.h"

namespace sherd::server {
namespace {

// A ring is lost only if its ringer dies between publishing and ringing; then this brings the owner back.
constexpr absl::Duration kLookAgain = absl::Milliseconds(100);

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Start(runtime::JobMemory* memory, Slot slot,
                                                      EngineOptions options) {
  if (slot.value() < 0 || slot.value() >= runtime::kMaxSlots) {
    return absl::InvalidArgumentError(
        absl::StrCat("slot ", slot.value(), " is not in 0..", runtime::kMaxSlots - 1, "; use fewer servers"));
  }
  options.workers = std::clamp(options.workers, 1, runtime::kMaxWorkers);
  absl::StatusOr<runtime::OwnerRecords*> records = memory->owner(slot);
  if (!records.ok()) return records.status();
  auto engine = absl::WrapUnique(new Engine(memory, slot, std::move(options), *records));
  engine->work_.Recover();
  engine->thread_ = std::thread([e = engine.get()] { e->Loop(); });
  return engine;
}

Engine::Engine(runtime::JobMemory* memory, Slot slot, EngineOptions options, runtime::OwnerRecords* records)
    : memory_(memory),
      slot_(slot),
      options_(std::move(options)),
      records_(records),
      pool_(options_.workers),
      work_(memory, records, &pool_, &counters_),
      slices_(memory, slot, records, &pool_) {}

Engine::~Engine() { Stop(); }

void Engine::Stop() {
  stop_.store(true, std::memory_order_release);
  memory_->control().servers[slot_.value()].bell.Ring();
  if (thread_.joinable()) thread_.join();
  if (warming_.joinable()) warming_.join();
}

Engine::Progress Engine::progress() const {
  Progress p;
  p.current = Mark(current_.load(std::memory_order_relaxed)).id();
  p.idle = idle_.load(std::memory_order_relaxed);
  p.ranges_epoch = ranges_epoch_.load(std::memory_order_relaxed);
  p.commits = commits_.load(std::memory_order_relaxed);
  p.skips = skips_.load(std::memory_order_relaxed);
  p.rejects = rejects_.load(std::memory_order_relaxed);
  p.owned_elements = owned_elements_.load(std::memory_order_relaxed);
  return p;
}

void Engine::Loop() {
  runtime::DoorbellWord& bell = memory_->control().servers[slot_.value()].bell;
  // A predecessor may have died between publishing and ringing.
  RingAll();
  while (!stop_.load(std::memory_order_acquire)) {
    const uint32_t ticket = bell.Listen();
    absl::Status status;
    bool worked = false;
    if (EnsurePipeline()) {
      work_.snapshots().Look(work_.ranges());
      status = Slice(&worked);
      if (status.ok()) status = Scan();
      while (status.ok() && !effects_.empty()) {
        worked = true;
        status = CarryOut();
        // What follows from the effects may change who owns what.
        if (status.ok() && !EnsurePipeline()) break;
        if (status.ok()) status = Scan();
      }
    }
    if (!status.ok() && last_error_ != status.message()) {
      last_error_ = std::string(status.message());
      records_->SetWaitsFor(last_error_);
      if (options_.on_error) options_.on_error(status);
    }
    if (!status.ok()) {  // begin again from memory: everything that was carried out is stamped
      effects_.clear();
      pipeline_.reset();
    } else if (worked) {
      continue;
    }
    const runtime::SpinPolicy spin = TrainersWait() ? options_.spin_among_owners : options_.spin;
    if (bell.Wait(ticket, kLookAgain, spin) == runtime::WaitResult::kTimeout && status.ok() &&
        pipeline_.has_value()) {
      // Without a link nothing else comes either.
      std::string waits_for = memory_->control().LinkProblem();
      if (waits_for.empty()) waits_for = slices_.WaitsFor();
      records_->SetWaitsFor(waits_for.empty() ? pipeline_->WaitsFor() : waits_for);
    }
  }
}

absl::Status Engine::Slice(bool* worked) {
  if (!pipeline_->open()) return absl::OkStatus();
  const absl::StatusOr<bool> some = slices_.Pass(pipeline_->current());
  if (!some.ok()) return some.status();
  *worked |= *some;
  return absl::OkStatus();
}

bool Engine::TrainersWait() const {
  if (!pipeline_.has_value()) return false;
  for (int r = 0; r < assignment_.world_size; ++r) {
    if (!pipeline_->step(Rank(r)).has_value()) return false;
  }
  return true;
}

void Engine::StartWarming() {
  if (warming_.joinable()) return;
  warming_ = std::thread([this, ranges = work_.ranges()] {
    for (const UnitRange& r : ranges) {
      // A failure shows again, with its name, when the memory is used.
      if (!memory_->PopulateBlocks(r.blocks, &stop_).ok()) return;
    }
  });
}

std::optional<runtime::Assignment> Engine::FindAssignment() {
  const runtime::ControlPage& control = memory_->control();
  const Step done = records_->Done().step;
  std::optional<runtime::Assignment> a = control.AssignmentFor(done.Next());
  if (!a.has_value() || slot_.value() >= a->servers) a = control.Newest();
  if (!a.has_value() || slot_.value() >= a->servers) return std::nullopt;
  const std::optional<runtime::Assignment> previous = control.Before(a->epoch);
  if (!previous.has_value() || done >= a->from_step) return a;
  // Its first step lies ahead: it begins when all owners before it have done their last one.
  const bool member = slot_.value() < previous->servers;
  for (int m = 0; m < previous->servers; ++m) {
    absl::StatusOr<runtime::OwnerRecords*> o = memory_->owner(Slot(m));
    if (!o.ok()) return std::nullopt;
    if ((*o)->Done().step.Next() < a->from_step) return member ? previous : std::nullopt;
  }
  if (!member && records_->Entered() != a->epoch) {
    // Slot 0 is in every assignment.
    absl::StatusOr<runtime::OwnerRecords*> first = memory_->owner(Slot(0));
    if (!first.ok()) return std::nullopt;
    records_->EnterFrom(**first, a->epoch);
  }
  return a;
}

bool Engine::EnsurePipeline() {
  // An old pipeline goes on until it says that its ranges have changed.
  if (pipeline_.has_value()) return true;
  const std::optional<runtime::Assignment> a = FindAssignment();
  idle_.store(!a.has_value(), std::memory_order_relaxed);
  if (!a.has_value()) return false;
  const StepId done = records_->Done();
  assignment_ = *a;
  owners_.clear();
  for (int m = 0; m < a->servers; ++m) {
    absl::StatusOr<runtime::OwnerRecords*> o = memory_->owner(Slot(m));
    if (!o.ok()) {
      if (options_.on_error) options_.on_error(o.status());
      return false;
    }
    owners_.push_back(*o);
  }
  if (absl::Status mapped = memory_->MapRanks(); !mapped.ok()) {
    if (options_.on_error) options_.on_error(mapped);
    return false;
  }
  work_.SetRanges(OwnedRanges(memory_->layout(), slot_, a->hosts), a->world_size);
  StepPipeline::Config config;
  config.world_size = a->world_size;
  config.servers = a->servers;
  config.slot = slot_;
  config.ranges_epoch = a->epoch;
  config.loss_scale = memory_->spec().loss_scale;
  const kernels::OptimizerInfo& optimizer = kernels::Info(memory_->spec().optimizer);
  config.pre_update = optimizer.norms || optimizer.directions;
  config.owns.assign(memory_->layout().units().size(), false);
  int64_t elements = 0;
  for (const UnitRange& r : work_.ranges()) {
    if (r.blocks.begin < memory_->trainable_blocks()) config.owns[r.unit] = true;
    memory_->layout().ForEachRun(r.blocks, [&](int t, BlockRange run) {
      const TensorInfo& info = memory_->layout().tensors()[t];
      elements += (run.size() - 1) * kBlockElements + info.ElementsIn(run.end - 1);
    });
  }
  if (memory_->place().several()) {
    config.host_ranks = memory_->spec().reduction.groups;
    config.host = memory_->place().index;
  }
  const StepId rejected = records_->Rejected();
  const uint8_t attempts = rejected.step == done.step.Next() ? rejected.attempt + 1 : 0;
  pipeline_.emplace(std::move(config), done, records_->Decided(), attempts);
  if (absl::Status s = slices_.SetAssignment(*a, pipeline_->current()); !s.ok()) {
    if (options_.on_error) options_.on_error(s);
    pipeline_.reset();
    return false;
  }
  marks_.assign(a->world_size, std::vector<uint64_t>(memory_->layout().units().size(), 0));
  effects_.clear();
  if (records_->ReadRangesChange().ranges_epoch != a->epoch)
    records_->SetRangesChange({a->epoch, done_ns_, runtime::MonotonicNanos()});
  StartWarming();
  owned_elements_.store(elements, std::memory_order_relaxed);
  ranges_epoch_.store(a->epoch, std::memory_order_relaxed);
  return true;
}

absl::Status Engine::Scan() {
  const StepId id = pipeline_->current();
  current_.store(Mark::Of(id).word(), std::memory_order_relaxed);
  const int units = static_cast<int>(memory_->layout().units().size());
  // First: with it, all that was there before it is seen.
  std::vector<std::pair<int, StepId>> cuts;
  for (int h = 0; memory_->place().several() && h < memory_->place().count; ++h) {
    const Mark cut(memory_->control().links[h].cut.load(std::memory_order_seq_cst));
    if (cut.word() != 0) cuts.emplace_back(h, cut.id());
  }
  for (int r = 0; r < assignment_.world_size; ++r) {
    const runtime::RankRecords& rank = memory_->rank(Rank(r));
    // The record first: with it, all marks of the step are seen.
    const bool step =
        !pipeline_->step(Rank(r)).has_value() && rank.HasStep(id.step) == std::optional<StepId>(id);
    for (int u = 0; u < units; ++u) {
      const Mark mark = rank.Delivered(u);
      if (mark.word() == marks_[r][u]) continue;
      marks_[r][u] = mark.word();
      pipeline_->OnDelivered(Rank(r), u, mark, &effects_);
    }
    if (step) {
      if (std::optional<TrainerStep> record = rank.ReadStep(id.step); record.has_value()) {
        pipeline_->OnTrainerStep(Rank(r), *record, &effects_);
      }
    }
  }
  for (int h = 0; memory_->place().several() && h < memory_->place().count; ++h) {
    if (h == memory_->place().index) continue;
    for (int u = 0; u < units; ++u) {
      pipeline_->OnReceived(h, u, Mark(memory_->Received(h, u).load(std::memory_order_acquire)), &effects_);
    }
  }
  for (int m = 0; m < assignment_.servers; ++m) ShowOwner(Slot(m));
  for (const auto& [host, step] : cuts) pipeline_->OnCut(host, step, &effects_);
  pipeline_->OnProposals(memory_->control().boundary.Read(), &effects_);
  return absl::OkStatus();
}

void Engine::ShowOwner(Slot slot) {
  pipeline_->OnOwner(slot, owners_[slot.value()]->ReadPage(pipeline_->current()), &effects_);
}

absl::Status Engine::CarryOut() {
  std::vector<Effect> effects;
  effects.swap(effects_);
  for (size_t i = 0; i < effects.size(); ++i) {
    const Effect& e = effects[i];
    absl::Status status;
    switch (e.kind) {
      case Effect::kReduce:
        status = Reduce(effects, &i);
        break;
      case Effect::kPrepare:
        Prepare(e);
        break;
      case Effect::kPreUpdate:
        status = PreUpdate(e);
        break;
      case Effect::kStoreVerdict:
        StoreVerdict();
        break;
      case Effect::kApply:
        status = Apply();
        break;
      case Effect::kPublishDone:
        PublishDone(e);
        break;
      case Effect::kPublishBoundary:
        PublishBoundary(e);
        break;
      case Effect::kDecideBoundary:
        status = DecideBoundary(e);
        break;
      case Effect::kChangeRanges:
        ChangeRanges(e);
        return absl::OkStatus();
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Engine::Reduce(const std::vector<Effect>& effects, size_t* i) {
  // All that stand in a row go to the workers at once.
  std::vector<BlockWork::Part> parts;
  const StepId id = effects[*i].id;
  size_t end = *i;
  for (; end < effects.size() && effects[end].kind == Effect::kReduce; ++end) {
    parts.push_back({effects[end].unit, effects[end].part});
  }
  absl::Status status = work_.Reduce(id, parts);
  if (!status.ok()) return status;
  for (const BlockWork::Part& p : parts) {
    records_->Consumed(p.unit).store(Mark::Of(id, p.part + 1).word(), std::memory_order_seq_cst);
  }
  // Trainers with a ring of units may wait for room.
  if (memory_->spec().stage >= 2) {
    for (int r = 0; r < assignment_.world_size; ++r) memory_->trainer(Rank(r)).bell.Ring();
    memory_->RingAgent();  // CONSUMED frees the outbox of another host
  }
  for (const BlockWork::Part& p : parts) pipeline_->OnReduced(p.unit, &effects_);
  *i = end - 1;
  return absl::OkStatus();
}

void Engine::Prepare(const Effect& e) {
  std::vector<uint64_t> has_grad;
  const bool give_up = pipeline_->given_up();
  for (int r = 0; r < assignment_.world_size && !give_up; ++r) {
    const std::optional<TrainerStep>& step = pipeline_->step(Rank(r));
    has_grad.resize(std::max(has_grad.size(), step->has_grad.size()));
    for (size_t w = 0; w < step->has_grad.size(); ++w) has_grad[w] |= step->has_grad[w];
  }
  OwnerPrepared prepared;
  prepared.id = e.id;
  prepared.ranges_epoch = assignment_.epoch;
  prepared.given_up = give_up;
  // Other groups of hosts have the same sums: they count once.
  if (!give_up && memory_->grid().GroupOf(memory_->place().index) == 0)
    prepared.sum_squares = work_.SumSquares(has_grad);
  prepared.proposals = memory_->control().proposals.Read();
  if (!memory_->control().MayBegin(prepared.proposals.ranges, e.id.step.Next())) {
    prepared.proposals.ranges = pipeline_->decided().ranges;
  }
  records_->PublishPrepared(prepared);
  // Only the last one's PREPARED lets the others go on; but whoever offers a boundary must learn of any.
  const bool boundary = memory_->control().boundary.Read().AnyNewerThan(pipeline_->decided());
  const bool last = std::all_of(owners_.begin(), owners_.end(), [&](const runtime::OwnerRecords* o) {
    return o->ReadPrepared(e.id).has_value();
  });
  if (boundary || last || memory_->place().several()) RingOwners();
  ShowOwner(slot_);
}

absl::Status Engine::PreUpdate(const Effect& e) {
  absl::Status status = work_.PreUpdate(pipeline_->verdict());
  if (!status.ok()) return status;
  records_->PublishPhased(e.id);
  RingOwners();
  ShowOwner(slot_);
  return absl::OkStatus();
}

void Engine::StoreVerdict() {
  const Verdict& v = pipeline_->verdict();
  decided_before_ = pipeline_->decided();
  // A step may be given up while ranks of another host have yet to see that the one before is done: the
  // verdict of that one stays where they look for it.
  if (v.kind == VerdictKind::kGivenUp) return;
  records_->WriteVerdict(v);
  if (IsRepeated(v.kind)) return;
  if (v.proposals.ranges > decided_before_.ranges) {
    memory_->control().Activate(v.proposals.ranges, v.id.step.Next());
  }
}

absl::Status Engine::Apply() {
  const Verdict& v = pipeline_->verdict();
  const uint64_t push = v.proposals.import > decided_before_.import ? v.proposals.import : 0;
  absl::Status status = work_.Apply(v, push);
  if (!status.ok()) return status;
  if (push != 0)
    memory_->control().import_steps[push % runtime::ControlPage::kImportSteps] = v.id.step.value();
  // Several snapshots may have been proposed since the last verdict, and one decided before may have waited
  // for this step: all of them are cut here.
  work_.snapshots().Cut(v.proposals.snapshot, v.id.step);
  (v.kind == VerdictKind::kCommit ? commits_ : skips_).fetch_add(1, std::memory_order_relaxed);
  pipeline_->OnApplied(&effects_);
  return absl::OkStatus();
}

void Engine::PublishDone(const Effect& e) {
  const bool rejected = IsRepeated(pipeline_->verdict().kind);
  if (rejected) {
    rejects_.fetch_add(1, std::memory_order_relaxed);
    records_->PublishRejected(e.id);
  } else {
    records_->PublishDone(e.id, pipeline_->decided());
  }
  done_ns_ = runtime::MonotonicNanos();
  const bool last = std::all_of(owners_.begin(), owners_.end(), [&](const runtime::OwnerRecords* o) {
    return rejected ? !(o->Rejected() < e.id) : !(o->Done() < e.id);
  });
  if (last) {
    // Owners have nothing to do before the trainers have, but where ranges change or a boundary is to be
    // decided.
    const Proposals& decided = pipeline_->decided();
    if (decided.ranges > assignment_.epoch || memory_->control().boundary.Read().AnyNewerThan(decided)) {
      RingAll();
    } else {
      RingTrainers();
    }
  }
  memory_->RingAgent();
  std::fill(marks_.begin(), marks_.end(), std::vector<uint64_t>(memory_->layout().units().size(), 0));
}

}  // namespace sherd::server
