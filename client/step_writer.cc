#include "client/step_writer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/job_sizes.h"

namespace sherd::client {
namespace {

// Gradients of which a reduce takes much longer than waking somebody to do it.
constexpr int64_t kWakeEarlyBytes = 16 << 20;

absl::Status GivenUpError() {
  return absl::AbortedError("the step was given up: the job goes on and computes it again");
}

}  // namespace

StepWriter::StepWriter(runtime::JobMemory* memory, Rank rank, Options options)
    : memory_(memory),
      rank_(rank),
      options_(std::move(options)),
      records_(memory->rank(rank)),
      parts_of_step_(memory->spec().parts) {}

StepWriter::~StepWriter() {
  stop_warming_.store(true, std::memory_order_relaxed);
  if (warming_.joinable()) warming_.join();
}

int64_t StepWriter::UnitBytes(int unit) const {
  return memory_->layout().units()[unit].blocks.size() * memory_->sizes().staging_block_bytes();
}

absl::Status StepWriter::MapStaging() {
  if (!chunks_.empty()) return absl::OkStatus();
  for (uint32_t c = 0;; ++c) {  // a predecessor's
    absl::StatusOr<absl::Span<char>> s = memory_->Staging(rank_, c);
    if (absl::IsNotFound(s.status())) break;
    if (!s.ok()) return s.status();
    AddPlaces({c, s->data(), static_cast<int64_t>(s->size())});
  }
  if (!ring()) {
    std::vector<StagingPlaces::Place> homes;
    for (size_t u = 0; u < memory_->layout().units().size(); ++u) {
      const int64_t begin = memory_->layout().units()[u].blocks.begin;
      homes.push_back({0, begin * memory_->sizes().staging_block_bytes(), UnitBytes(u)});
    }
    places_.SetHomes(std::move(homes));
  }
  if (!chunks_.empty()) return absl::OkStatus();
  absl::Status added = AddChunk(JobSizes(memory_->spec()).staging_bytes(options_.ring_bytes)).status();
  if (added.ok()) {
    // A failure shows again, with its name, when the memory is used.
    warming_ = std::thread([this] { memory_->PopulateStaging(rank_, 0, &stop_warming_).IgnoreError(); });
  }
  return added;
}

absl::StatusOr<StepWriter::Chunk*> StepWriter::AddChunk(int64_t bytes) {
  const uint32_t index = static_cast<uint32_t>(chunks_.size());
  absl::StatusOr<absl::Span<char>> s = memory_->CreateStaging(rank_, index, bytes);
  if (!s.ok()) return s.status();
  AddPlaces({index, s->data(), static_cast<int64_t>(s->size())});
  return &chunks_.back();
}

void StepWriter::AddPlaces(const Chunk& chunk) {
  chunks_.push_back(chunk);
  staging_bytes_ += chunk.bytes;
  places_.AddChunk(chunk.data, chunk.bytes);
}

absl::Status StepWriter::StandAt(StepId id) {
  if (absl::Status changed = WaitForRanks(id); !changed.ok()) return changed;
  const std::optional<runtime::Assignment> a = memory_->control().AssignmentFor(id.step);
  if (!a.has_value()) return absl::FailedPreconditionError("the job has no owners");
  if (absl::Status mapped = memory_->MapRanks(); !mapped.ok()) return mapped;
  id_ = id;
  world_size_ = a->world_size;
  part_ = 0;
  const size_t units = memory_->layout().units().size();
  counted_.assign(units, 0);
  delivered_.assign(units, 0);
  staged_.assign(units, false);
  where_.assign(units, {});
  for (size_t u = 0; u < units; ++u) delivered_[u] = records_.Delivered(u).PartsOf(id);
  return absl::OkStatus();
}

std::string StepWriter::BlobBefore(Step next) const {
  const Step before(next.value() - 1);
  if (next.value() == 0 || records_.HasStep(before).has_value()) return records_.ReadBlob(before);
  return memory_->rank(Rank(0)).ReadBlob(before);
}

absl::StatusOr<StepWriter::Start> StepWriter::Join(uint64_t incarnation) {
  runtime::MemberEntry& me = memory_->trainer(rank_);
  me.ready.store(incarnation, std::memory_order_release);
  memory_->control().bell.Ring();
  bool wanted = true;
  absl::Status waited = WaitUntil("the job to take this rank in", [&] {
    wanted = me.state.load(std::memory_order_acquire) == runtime::MemberEntry::kAttached &&
             me.incarnation.load(std::memory_order_acquire) == incarnation;
    const absl::StatusOr<StepId> done = memory_->DoneByAll();
    if (!done.ok()) return !wanted;
    const std::optional<runtime::Assignment> a = memory_->control().AssignmentFor(done->step.Next());
    if (!a.has_value()) return !wanted;
    if (rank_.value() < a->world_size) return wanted = true;
    // Those who would have to take it in have finished.
    bool over = true;
    for (int r = 0; r < a->world_size; ++r) {
      over &=
          memory_->trainer(Rank(r)).state.load(std::memory_order_acquire) == runtime::MemberEntry::kFinished;
    }
    wanted &= !over;
    return !wanted;
  });
  if (!waited.ok()) return waited;
  if (!wanted) {
    return absl::CancelledError(absl::StrCat(
        "rank ", rank_.value(), " is not wanted any more: the resize was taken back, or the job has ended"));
  }
  return Resume();
}

bool StepWriter::GivenUp() {
  absl::StatusOr<std::vector<runtime::OwnerRecords*>> owners = Owners(id_.step);
  if (!owners.ok()) return false;
  return std::all_of(owners->begin(), owners->end(), [&](const runtime::OwnerRecords* o) {
    return o->Rejected().step == id_.step && !(o->Rejected() < id_);
  });
}

absl::Status StepWriter::StartOver() {
  places_.ReclaimAll();
  return StandAt(id_.NextAttempt());
}

absl::StatusOr<StepWriter::Start> StepWriter::Resume() {
  absl::Status staging = MapStaging();
  if (!staging.ok()) return staging;
  absl::StatusOr<StepId> done = memory_->DoneByAll();
  if (!done.ok()) return done.status();
  StepId next = done->NextStep();
  const std::optional<runtime::Assignment> world = memory_->control().AssignmentFor(next.step);
  if (world.has_value() && rank_.value() >= world->world_size) {
    Start joining;
    joining.joining = true;
    return joining;
  }
  // The record of a step that is under way: it will be decided without us.
  if (const std::optional<StepId> pending = records_.HasStep(next.step); pending.has_value()) {
    bool rejected = false;
    absl::Status waited = WaitDone(*pending, &rejected);
    if (!waited.ok()) return waited;
    next = rejected ? pending->NextAttempt() : pending->NextStep();
  }
  // An attempt that was rejected before our predecessor recorded the next one.
  absl::StatusOr<std::vector<runtime::OwnerRecords*>> owners = Owners(next.step);
  if (!owners.ok()) return owners.status();
  for (const runtime::OwnerRecords* o : *owners) {
    const StepId r = o->Rejected();
    if (r.step == next.step && !(r < next)) next = r.NextAttempt();
  }
  if (absl::Status stands = StandAt(next); !stands.ok()) return stands;
  loss_scale_ = memory_->CurrentLossScale();  // of the last verdict: the step in hand waits for this rank
  for (size_t u = 0; u < delivered_.size(); ++u) {
    const Mark mark = records_.Delivered(u);
    const runtime::Delivery d = records_.ReadDelivery(u);
    if (mark.PartsOf(next) == 0 || d.chunk == runtime::Delivery::kEmpty) continue;
    places_.Restore({d.chunk, static_cast<int64_t>(d.offset), UnitBytes(u)}, static_cast<int>(u), mark);
  }
  return Start{next, BlobBefore(next.step)};
}

void StepWriter::BeginPart(float scale) { scale_ = scale; }

void StepWriter::BeginLatePart(float scale) { scale_ = scale; }

absl::StatusOr<std::vector<runtime::OwnerRecords*>> StepWriter::Owners(Step step) {
  if (memory_->control().EpochFor(step) != owners_epoch_) {
    const std::optional<runtime::Assignment> a = memory_->control().AssignmentFor(step);
    if (!a.has_value()) return absl::FailedPreconditionError("the job has no owners");
    owners_.clear();
    for (int m = 0; m < a->servers; ++m) {
      absl::StatusOr<runtime::OwnerRecords*> o = memory_->owner(Slot(m));
      if (!o.ok()) return o.status();
      owners_.push_back(*o);
    }
    owners_epoch_ = a->epoch;
    owner_hosts_ = a->hosts;
  }
  return owners_;
}

void StepWriter::RingOwners() {
  if (!Owners(id_.step).ok()) return;
  for (size_t m = 0; m < owners_.size(); ++m) memory_->control().servers[m].bell.Ring();
}

bool StepWriter::ConsumedByAll(int unit, Mark mark) {
  // Marks of a step that is done are consumed whatever the pages of later owners say.
  if (mark.id() < id_) return true;
  absl::StatusOr<std::vector<runtime::OwnerRecords*>> owners = Owners(id_.step);
  if (!owners.ok()) return false;
  const BlockRange blocks = memory_->layout().units()[unit].blocks;
  if (blocks.begin >= memory_->trainable_blocks()) return true;  // frozen: nobody reduces it
  for (size_t m = 0; m < owners->size(); ++m) {
    // What goes to other hosts is read by the slots here that sum it, and by nobody there.
    if (owner_hosts_.hosts() > 1) {
      if (!memory_->IsHere(Slot(static_cast<int>(m)), owner_hosts_)) continue;
      if (!SlicedBy(blocks, Slot(static_cast<int>(m)), owner_hosts_).empty() &&
          Mark((*owners)[m]->Sliced(unit).load(std::memory_order_seq_cst)) < mark) {
        return false;
      }
    }
    // Whoever owns no block of the unit never consumes it.
    if (Owned(blocks, Slot(static_cast<int>(m)), owner_hosts_).empty()) continue;
    if (Mark((*owners)[m]->Consumed(unit).load(std::memory_order_seq_cst)) < mark) return false;
  }
  return true;
}

void StepWriter::Reclaim() {
  places_.Reclaim([this](int unit, Mark until) { return ConsumedByAll(unit, until); });
}

bool StepWriter::LastToDeliver(int unit) const {
  for (int r = 0; r < world_size_; ++r) {
    if (!memory_->IsHere(Rank(r))) continue;
    if (memory_->rank(Rank(r)).Delivered(unit).PartsOf(id_) < delivered_[unit]) return false;
  }
  return true;
}

absl::Status StepWriter::WaitConsumed(int unit, Mark mark) {
  if (ConsumedByAll(unit, mark)) return absl::OkStatus();
  RingOwners();
  records_.Wanted(unit).store(mark.word(), std::memory_order_relaxed);
  bool given_up = false;
  absl::Status waited = WaitUntil(absl::StrCat("owners to consume unit ", unit),
                                  [&] { return ConsumedByAll(unit, mark) || (given_up = GivenUp()); });
  records_.Wanted(unit).store(0, std::memory_order_relaxed);
  return given_up ? GivenUpError() : waited;
}

bool StepWriter::OwnersHoldPlaces() const {
  bool any = false;
  places_.ForEachAwaited([&](int unit, Mark until) { any |= Mark::Of(id_, delivered_[unit]) >= until; });
  return any;
}

absl::Status StepWriter::WaitForOwners(absl::string_view what, const std::function<bool()>& ready) {
  RingOwners();
  places_.ForEachAwaited(
      [&](int unit, Mark until) { records_.Wanted(unit).store(until.word(), std::memory_order_relaxed); });
  bool given_up = false;
  absl::Status waited = WaitUntil(what, [&] {
    Reclaim();
    return ready() || (given_up = GivenUp());
  });
  for (size_t u = 0; u < delivered_.size(); ++u) records_.Wanted(u).store(0, std::memory_order_relaxed);
  return given_up ? GivenUpError() : waited;
}

absl::StatusOr<StagingPlaces::Place> StepWriter::WaitForRoom(int unit) {
  const int64_t bytes = UnitBytes(unit);
  const Mark until = Mark::Of(id_, delivered_[unit] + 1);
  Reclaim();
  std::optional<StagingPlaces::Place> place = places_.Take(unit, bytes, until);
  if (place.has_value()) return *place;
  // With a place for each unit, only what was borrowed for something else can be in the way.
  bool grow = !ring();
  absl::Status waited = WaitForOwners(absl::StrCat("room to stage unit ", unit), [&] {
    place = places_.Take(unit, bytes, until);
    if (place.has_value() || grow) return true;
    // Two ranks that deliver in different orders could wait for each other for ever; nor do owners free what
    // is borrowed, or staged and not whole yet.
    grow = SomeoneAhead() || !OwnersHoldPlaces();
    return grow;
  });
  if (!waited.ok()) return waited;
  if (place.has_value()) return *place;
  absl::StatusOr<Chunk*> chunk = AddChunk(ring() ? std::max(bytes, chunks_.front().bytes / 2) : bytes);
  if (!chunk.ok()) return chunk.status();
  ++growths_;
  return *places_.Take(unit, bytes, until);
}

absl::Status StepWriter::WaitFormerPart(int unit) {
  if (delivered_[unit] == 0) return absl::OkStatus();
  // Another rank may wait in the same way for a unit of which we have nothing to deliver: first say so, or
  // both wait for ever.
  absl::Status filled = FillUpTo(delivered_[unit]);
  if (!filled.ok()) return filled;
  return WaitConsumed(unit, Mark::Of(id_, delivered_[unit]));
}

void StepWriter::Stand(int unit, const StagingPlaces::Place& place) {
  where_[unit] = {place.chunk, static_cast<uint64_t>(place.offset), scale_};
  staged_[unit] = true;
  // Another unit's gradients may stand where this one has padding.
  const UnitInfo& info = memory_->layout().units()[unit];
  char* at = chunks_[place.chunk].data + place.offset;
  const int64_t element = SizeOf(memory_->spec().staging);
  for (int t = info.first_tensor; t < info.end_tensor; ++t) {
    const TensorInfo& tensor = memory_->layout().tensors()[t];
    if (tensor.blocks.empty()) continue;
    const int64_t begin = (tensor.blocks.begin - info.blocks.begin) * kBlockElements + tensor.numel;
    const int64_t end = (tensor.blocks.end - info.blocks.begin) * kBlockElements;
    std::memset(at + begin * element, 0, (end - begin) * element);
  }
}

absl::StatusOr<void*> StepWriter::Stage(int unit) {
  if (counted_[unit] < delivered_[unit]) return static_cast<void*>(nullptr);
  if (!staged_[unit]) {
    if (absl::Status former = WaitFormerPart(unit); !former.ok()) return former;
    absl::StatusOr<StagingPlaces::Place> place = WaitForRoom(unit);
    if (!place.ok()) return place.status();
    Stand(unit, *place);
  }
  return static_cast<void*>(chunks_[where_[unit].chunk].data + where_[unit].offset);
}

void* StepWriter::Borrow(int64_t bytes) {
  Reclaim();
  void* place = places_.Borrow(bytes);
  if (place != nullptr || !ring() || !OwnersHoldPlaces()) return place;
  const absl::Status waited = WaitForOwners("room in staging", [&] {
    place = places_.Borrow(bytes);
    return place != nullptr || SomeoneAhead() || !OwnersHoldPlaces();
  });
  // Stage will meet the error again.
  waited.IgnoreError();
  return place;
}

absl::StatusOr<bool> StepWriter::StageAt(int unit, const void* place) {
  if (counted_[unit] < delivered_[unit] || staged_[unit]) return false;
  if (absl::Status former = WaitFormerPart(unit); !former.ok()) return former;
  const std::optional<StagingPlaces::Place> assigned =
      places_.Assign(place, unit, UnitBytes(unit), Mark::Of(id_, delivered_[unit] + 1));
  if (assigned.has_value()) Stand(unit, *assigned);
  return assigned.has_value();
}

void StepWriter::Deliver(int unit) {
  ++counted_[unit];
  if (counted_[unit] <= delivered_[unit]) return;
  staged_[unit] = false;
  where_[unit].scale = scale_;
  delivered_[unit] = counted_[unit];
  records_.PublishDelivered(unit, Mark::Of(id_, delivered_[unit]), where_[unit]);
  if (options_.overlap && LastToDeliver(unit)) RingOwners();
}

absl::Status StepWriter::EndPart() {
  ++part_;
  // Nothing need be said of the last part: the STEP record counts what was delivered.
  return static_cast<int>(part_) >= parts_of_step_ ? absl::OkStatus() : FillUpTo(part_);
}

absl::Status StepWriter::FillUpTo(uint32_t parts) {
  for (size_t u = 0; u < counted_.size(); ++u) {
    if (memory_->layout().units()[u].blocks.begin >= memory_->trainable_blocks()) continue;
    while (counted_[u] < parts) {
      ++counted_[u];
      if (delivered_[u] >= counted_[u]) continue;  // a predecessor said so
      if (delivered_[u] > 0) {
        absl::Status consumed = WaitConsumed(static_cast<int>(u), Mark::Of(id_, delivered_[u]));
        if (!consumed.ok()) return consumed;
      }
      delivered_[u] = counted_[u];
      records_.PublishDelivered(static_cast<int>(u), Mark::Of(id_, delivered_[u]),
                                {runtime::Delivery::kEmpty, 0, scale_});
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Verdict> StepWriter::Finish(const Record& record, absl::string_view blob) {
  TrainerStep step;
  step.id = id_;
  step.samples = record.samples;
  step.weight = record.weight;
  step.loss = record.loss, step.max_grad_norm = record.max_grad_norm;
  step.loss_scale = loss_scale_;
  step.groups = record.groups;
  step.has_grad = record.has_grad;
  step.imports = record.imports;
  step.parts.reserve(delivered_.size());
  for (uint32_t parts : delivered_) step.parts.push_back(static_cast<uint16_t>(parts));
  absl::Status published = records_.PublishStep(step, blob);
  if (!published.ok()) return published;
  bool last = true;
  for (int r = 0; r < world_size_ && last; ++r) {
    last =
        !memory_->IsHere(Rank(r)) || memory_->rank(Rank(r)).HasStep(id_.step) == std::optional<StepId>(id_);
  }
  memory_->RingAgent();
  // Or while the others still compute: this rank's core is free from now on, for what all have delivered.
  if (last || memory_->trainable_blocks() * memory_->sizes().staging_block_bytes() >= kWakeEarlyBytes)
    RingOwners();
  bool rejected = false;
  absl::Status waited = WaitDone(id_, &rejected);
  if (!waited.ok()) return waited;
  absl::StatusOr<std::vector<runtime::OwnerRecords*>> owners = Owners(id_.step);
  if (!owners.ok()) return owners.status();
  std::optional<Verdict> verdict = owners->front()->ReadVerdict(id_);
  if (!verdict.has_value() && rejected) return GivenUpError();
  if (!verdict.has_value()) {
    const std::optional<runtime::Assignment> next = memory_->control().AssignmentFor(id_.step.Next());
    if (!next.has_value() || next->world_size > rank_.value()) {
      return absl::InternalError(
          absl::StrCat("step ", id_.ToString(), " is done but its verdict can not be read"));
    }
    // It lets this rank go: the others have gone on already, and written the next one over it.
    verdict.emplace();
    verdict->id = id_;
    verdict->loss_scale = loss_scale_;
    verdict->loss = verdict->grad_norm = std::nan("");
  }
  if (absl::Status stands = StandAt(rejected ? id_.NextAttempt() : id_.NextStep()); !stands.ok())
    return stands;
  if (!rejected) loss_scale_ = verdict->loss_scale;
  if (!rejected) places_.ReclaimAll();
  return *std::move(verdict);
}

}  // namespace sherd::client
