#include "runtime/job_memory.h"

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/host_map.h"

namespace sherd::runtime {

JobMemory::JobMemory(const JobDir* dir, JobSpec spec, Role role)
    : dir_(dir),
      spec_(std::move(spec)),
      role_(role),
      plane_names_(spec_.PlaneNames()),
      sizes_(spec_),
      ranks_(new std::unique_ptr<RankPageMapping>[kMaxWorldSize]) {}

int64_t JobMemory::BytesFor(const JobSpec& spec) {
  const JobSizes sizes(spec);
  int64_t bytes = sizes.grad_bytes() + sizes.directions_bytes() + sizes.stamps_bytes() +
                  sizes.compute_bytes() + spec.world_size * RankRecords::BytesFor(spec);
  for (size_t p = 0; p < spec.PlaneNames().size(); ++p) bytes += sizes.plane_bytes(static_cast<int>(p));
  return bytes;
}

std::string JobMemory::OwnerName(Slot slot) { return absl::StrCat("owner.", slot.value()); }
std::string JobMemory::StagingName(Rank rank, uint32_t chunk) {
  return absl::StrCat("staging.", rank.value(), ".", chunk);
}

absl::StatusOr<Segment> JobMemory::Get(const std::string& name, SegmentKind kind, int64_t bytes, bool create,
                                       bool writable, const std::vector<Segment::Range>* reserve) {
  if (create) {
    // Left by a coordinator that died while it made the job: nobody uses it yet.
    const absl::Status unlinked = Segment::Unlink(*dir_, name);
    if (!unlinked.ok() && !absl::IsNotFound(unlinked)) return unlinked;
    return reserve == nullptr ? Segment::Create(*dir_, name, kind, bytes)
                              : Segment::CreateSparse(*dir_, name, kind, bytes, *reserve);
  }
  absl::StatusOr<Segment> segment =
      Segment::Open(*dir_, name, writable ? Segment::Access::kReadWrite : Segment::Access::kReadOnly, kind);
  if (segment.ok() && segment->size() != bytes) {
    return absl::FailedPreconditionError(absl::StrCat(
        "segment ", name, " of ", dir_->path(), " has ", segment->size(), " bytes, this job's sizes need ",
        bytes, "; the job was created from another model or configuration"));
  }
  return segment;
}

absl::Status JobMemory::MapAll(bool create) {
  const bool owner = role_ == Role::kOwner;
  const auto get = [&](Segment* into, const std::string& name, SegmentKind kind, int64_t bytes, bool writable,
                       const std::vector<Segment::Range>* reserve = nullptr) {
    absl::StatusOr<Segment> s = Get(name, kind, bytes, create, writable, reserve);
    if (s.ok()) *into = std::move(*s);
    return s.status();
  };
  // Opened first and made last.
  const int64_t control_bytes = sizeof(ControlPage);
  if (!create) {
    absl::Status s = get(&control_, "control", SegmentKind::kControl, control_bytes, role_ != Role::kReader);
    if (!s.ok()) return s;
    const ControlPage& c = control();
    if (c.layout_hash == 0 && c.world_size == 0) {
      return absl::NotFoundError(absl::StrCat("job ", dir_->job(), " is being created"));
    }
    if (c.layout_hash != layout().hash() || c.world_size != spec_.world_size || c.stage != spec_.stage) {
      return absl::FailedPreconditionError(
          absl::StrCat("job ", dir_->job(), " has layout ", absl::Hex(c.layout_hash), ", ", c.world_size,
                       " ranks and stage ", c.stage, "; asked for layout ", absl::Hex(layout().hash()), ", ",
                       spec_.world_size, " ranks and stage ", spec_.stage));
    }
  }
  if (!create) SetPlace({control().host_index, std::max(1, control().host_count)});
  std::vector<Segment::Range> own, masters, compute;
  if (create && place_.several()) {
    own = Shares(kBlockBytes, /*others=*/false, /*trainable=*/true);
    masters = KeptParameters(/*masters=*/true);
    compute = KeptParameters(/*masters=*/false);
  }
  const auto sparse = [&](const std::vector<Segment::Range>& ranges) {
    return place_.several() ? &ranges : nullptr;
  };
  // Rank 0 writes all initial values, on the first host, or everybody has all parameters.
  const bool part = place_.index > 0 || spec_.gather.initial_shares;
  const bool masters_whole = !part || (spec_.compute == DType::kFloat32 && spec_.stage < 3);
  const bool compute_whole = !part || spec_.stage < 3;
  planes_.resize(planes());
  for (int p = 0; p < planes(); ++p) {
    absl::Status s =
        get(&planes_[p], absl::StrCat("plane.", plane_name(p)),
            p == 0 ? SegmentKind::kParameters : SegmentKind::kPlane, sizes_.plane_bytes(p), owner,
            p > 0           ? sparse(own)
            : masters_whole ? nullptr
                            : sparse(masters));
    if (!s.ok()) return s;
  }
  if (sizes_.compute_bytes() > 0) {
    absl::Status s = get(&compute_, kComputeName, SegmentKind::kParameters, sizes_.compute_bytes(), owner,
                         compute_whole ? nullptr : sparse(compute));
    if (!s.ok()) return s;
  }
  absl::Status s = get(&stamps_, "stamps", SegmentKind::kStamps, sizes_.stamps_bytes(), owner);
  if (s.ok()) s = get(&grad_, "grad", SegmentKind::kReduced, sizes_.grad_bytes(), owner, sparse(own));
  if (s.ok() && place_.several()) s = MapExchange(create);
  if (s.ok() && place_.several() && spec_.stage == 3) {
    s = get(&gather_, "gather", SegmentKind::kControl, GatherPage::BytesFor(spec_), role_ != Role::kReader);
  }
  if (s.ok() && sizes_.directions_bytes() > 0) {
    s = get(&directions_, "directions", SegmentKind::kReduced, sizes_.directions_bytes(), owner);
  }
  if (s.ok()) {
    s = get(&members_, "members", SegmentKind::kControl,
            kMaxWorldSize * static_cast<int64_t>(sizeof(MemberEntry)), role_ != Role::kReader);
  }
  if (s.ok()) s = MapRanksUpTo(create ? spec_.world_size : places(), /*replace=*/create, /*add=*/false);
  if (s.ok() && create) {
    for (int m = 0; m < kMaxSlots && s.ok(); ++m) {
      // Pages of an earlier, unfinished creation; made again when a slot is taken.
      s = Segment::Unlink(*dir_, OwnerName(Slot(m)));
      if (absl::IsNotFound(s)) s = absl::OkStatus();
    }
    absl::StatusOr<Segment> control = Segment::Anonymous(control_bytes);
    if (s.ok()) s = get(&control_, "control", SegmentKind::kControl, control_bytes, true);
    if (s.ok()) {
      ControlPage& c = this->control();
      c.host_index = place_.index;
      c.host_count = place_.count;
      c.shard_hosts = grid_.groups() > 1 ? grid_.group : 0;
      // Without a layout hash and a world the page reads as not made yet.
      std::atomic_thread_fence(std::memory_order_release);
      c.layout_hash = layout().hash();
      c.world_size = spec_.world_size;
      c.stage = spec_.stage;
      c.places.store(spec_.world_size, std::memory_order_release);
    }
  }
  return s;
}

absl::Status JobMemory::MapRanksUpTo(int count, bool replace, bool add) {
  count = std::clamp(count, 0, kMaxWorldSize);
  MutexLock lock(mu_);
  for (; mapped_ranks_ < count; ++mapped_ranks_) {
    const std::string name = absl::StrCat("rank.", mapped_ranks_);
    const int64_t bytes = RankRecords::BytesFor(spec_);
    absl::StatusOr<Segment> page =
        add ? Segment::Create(*dir_, name, SegmentKind::kControl, bytes)
            : Get(name, SegmentKind::kControl, bytes, replace, role_ != Role::kReader);
    // Made by a coordinator that died before it said so: nobody has used it.
    if (add && absl::IsAlreadyExists(page.status()))
      page = Get(name, SegmentKind::kControl, bytes, false, true);
    if (!page.ok()) return page.status();
    auto mapping = std::make_unique<RankPageMapping>();
    mapping->segment = *std::move(page);
    mapping->records = RankRecords(&spec_, mapping->segment.as<char>());
    ranks_[mapped_ranks_] = std::move(mapping);
  }
  return absl::OkStatus();
}

absl::Status JobMemory::MapRanks() { return MapRanksUpTo(places(), /*replace=*/false, /*add=*/false); }

absl::Status JobMemory::AddRanks(int places) {
  absl::Status s = MapRanks();
  if (s.ok()) s = MapRanksUpTo(places, /*replace=*/false, /*add=*/true);
  if (s.ok() && places > this->places()) control().places.store(places, std::memory_order_release);
  return s;
}

absl::StatusOr<std::unique_ptr<JobMemory>> JobMemory::Create(const JobDir* dir, JobSpec spec,
                                                             HostPlace place) {
  std::unique_ptr<JobMemory> memory(new JobMemory(dir, std::move(spec), Role::kOwner));
  memory->SetPlace(place);
  absl::Status s = memory->MapAll(/*create=*/true);
  if (!s.ok()) {
    for (int p = 0; p < memory->planes(); ++p) {
      Segment::Unlink(*dir, absl::StrCat("plane.", memory->plane_name(p))).IgnoreError();
    }
    for (int h = 0; h < place.count; ++h) Segment::Unlink(*dir, absl::StrCat("inbox.", h)).IgnoreError();
    for (const char* name : {kComputeName, "stamps", "grad", "directions", "members", "outbox", "gather"})
      Segment::Unlink(*dir, name).IgnoreError();
    for (int r = 0; r < memory->spec_.world_size; ++r) {
      Segment::Unlink(*dir, absl::StrCat("rank.", r)).IgnoreError();
    }
    if (absl::IsResourceExhausted(s)) {
      return absl::ResourceExhaustedError(absl::StrCat(s.message(), " (the whole job needs ",
                                                       BytesFor(memory->spec_),
                                                       " bytes and its trainers' staging)"));
    }
    return s;
  }
  return memory;
}

absl::StatusOr<std::unique_ptr<JobMemory>> JobMemory::Open(const JobDir* dir, JobSpec spec, Role role) {
  std::unique_ptr<JobMemory> memory(new JobMemory(dir, std::move(spec), role));
  absl::Status s = memory->MapAll(/*create=*/false);
  if (!s.ok()) return s;
  return memory;
}

MemberEntry& JobMemory::trainer(Rank rank) const { return members_.as<MemberEntry>()[rank.value()]; }

std::atomic<uint64_t>* JobMemory::reduce_stamps() const { return stamps_.as<std::atomic<uint64_t>>(); }
std::atomic<uint64_t>* JobMemory::apply_stamps() const {
  return reinterpret_cast<std::atomic<uint64_t>*>(stamps_.data() + sizes_.apply_at());
}
std::atomic<uint64_t>* JobMemory::tensor_steps(Step step) const {
  return reinterpret_cast<std::atomic<uint64_t>*>(
      stamps_.data() + sizes_.steps_at() + static_cast<int64_t>(step.value() & 1) * sizes_.steps_bytes());
}

absl::StatusOr<OwnerRecords*> JobMemory::owner(Slot slot) {
  MutexLock lock(mu_);
  auto it = owners_.find(slot.value());
  if (it != owners_.end()) return &it->second->records;
  const int64_t bytes = OwnerRecords::BytesFor(spec_);
  absl::StatusOr<Segment> segment =
      Get(OwnerName(slot), SegmentKind::kControl, bytes, false, role_ == Role::kOwner);
  if (!segment.ok() && absl::IsNotFound(segment.status()) && role_ == Role::kOwner) {
    segment = Segment::Create(*dir_, OwnerName(slot), SegmentKind::kControl, bytes);
    // Another server was faster: its page is as good.
    if (absl::IsAlreadyExists(segment.status()))
      segment = Get(OwnerName(slot), SegmentKind::kControl, bytes, false, true);
  }
  if (!segment.ok()) return segment.status();
  auto mapping = std::make_unique<OwnerPageMapping>();
  mapping->segment = *std::move(segment);
  mapping->records = OwnerRecords(&spec_, mapping->segment.as<char>());
  return &owners_.emplace(slot.value(), std::move(mapping)).first->second->records;
}

absl::StatusOr<absl::Span<char>> JobMemory::CreateStaging(Rank rank, uint32_t chunk, int64_t bytes) {
  absl::StatusOr<Segment> s = Segment::Create(*dir_, StagingName(rank, chunk), SegmentKind::kStaging, bytes);
  if (!s.ok()) return s.status();
  MutexLock lock(mu_);
  Segment& kept = staging_[{rank.value(), chunk}] = *std::move(s);
  return absl::MakeSpan(kept.as<char>(), kept.size());
}

absl::StatusOr<absl::Span<char>> JobMemory::Staging(Rank rank, uint32_t chunk) {
  MutexLock lock(mu_);
  auto it = staging_.find({rank.value(), chunk});
  if (it == staging_.end()) {
    absl::StatusOr<Segment> s =
        Segment::Open(*dir_, StagingName(rank, chunk),
                      role_ == Role::kTrainer ? Segment::Access::kReadWrite : Segment::Access::kReadOnly,
                      SegmentKind::kStaging);
    if (!s.ok()) return s.status();
    it = staging_.emplace(std::make_pair(rank.value(), chunk), *std::move(s)).first;
  }
  return absl::MakeSpan(it->second.as<char>(), it->second.size());
}

absl::Status JobMemory::PopulateStaging(Rank rank, uint32_t chunk, const std::atomic<bool>* cancel) {
  const Segment* segment = nullptr;
  {
    MutexLock lock(mu_);
    auto it = staging_.find({rank.value(), chunk});
    if (it == staging_.end()) return absl::NotFoundError(StagingName(rank, chunk));
    segment = &it->second;  // stays where it is
  }
  return segment->Populate(1, cancel);
}

absl::Status JobMemory::PopulateBlocks(BlockRange blocks, const std::atomic<bool>* cancel) const {
  // Plane by plane, in the order of a first step: gradients are summed before anything is updated.
  const BlockRange trainable = {std::min(blocks.begin, trainable_blocks()),
                                std::min(blocks.end, trainable_blocks())};
  absl::Status s = grad_.PopulateRange(trainable.begin * kBlockBytes, trainable.size() * kBlockBytes, cancel);
  for (int p = 0; p < planes() && s.ok(); ++p) {
    const BlockRange own = p == 0 ? blocks : trainable;
    s = planes_[p].PopulateRange(own.begin * kBlockBytes, own.size() * kBlockBytes, cancel);
  }
  if (s.ok() && compute() != nullptr) {
    const int64_t bytes = kBlockElements * SizeOf(spec_.compute);
    s = compute_.PopulateRange(blocks.begin * bytes, blocks.size() * bytes, cancel);
  }
  return s;
}

absl::Status JobMemory::BeginFirstAssignment(uint64_t epoch, const HostMap& hosts, Step done) {
  Proposals decided;
  decided.ranges = epoch;
  // A new page stands at step 0 by itself; where that is not the beginning every slot is put there.
  for (int m = 0; m < (done.value() == 0 ? 1 : hosts.servers()); ++m) {
    absl::StatusOr<OwnerRecords*> page = owner(Slot(m));
    if (!page.ok()) return page.status();
    (*page)->Begin({done, 0}, decided);
  }
  control().PutAssignment(epoch, hosts, spec_.world_size);
  control().Activate(epoch, done.Next());
  return absl::OkStatus();
}

LossScale JobMemory::CurrentLossScale() {
  // Slot 0 is in every assignment, and keeps the verdict of the last step until the one in hand is decided.
  absl::StatusOr<OwnerRecords*> first = owner(Slot(0));
  for (int tries = 0; first.ok() && tries < 3; ++tries) {  // it may be written just now
    if (std::optional<Verdict> last = (*first)->LastVerdict(); last.has_value()) return last->loss_scale;
  }
  return FirstLossScale(spec_.loss_scale);
}

absl::StatusOr<StepId> JobMemory::LeastDone(const Assignment& a) {
  StepId least{Step(Mark::kMaxStep), 0};
  for (int m = 0; m < a.servers; ++m) {
    absl::StatusOr<OwnerRecords*> o = owner(Slot(m));
    if (!o.ok()) return o.status();
    least = std::min(least, (*o)->Done());
  }
  return least;
}

absl::StatusOr<StepId> JobMemory::DoneByAll() {
  const std::optional<Assignment> a = control().Newest();
  if (!a.has_value()) return absl::FailedPreconditionError("the job has no owners yet");
  const StepId before{Step(a->from_step.value() == 0 ? 0 : a->from_step.value() - 1), 0};
  // An assignment is entered in the table before its predecessors have done their last step.
  const std::optional<Assignment> previous = control().Before(a->epoch);
  if (previous.has_value()) {
    absl::StatusOr<StepId> done = LeastDone(*previous);
    if (!done.ok() || done->step < before.step) return done;
  }
  // New slots enter a moment after the assignment: until then they stand before it.
  absl::StatusOr<StepId> done = LeastDone(*a);
  if (done.ok() && done->step <= before.step) return before;
  return done;
}

}  // namespace sherd::runtime
