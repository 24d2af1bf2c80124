#include "tests/sim/world.h"

#include <algorithm>
#include <cstdio>

namespace sherd::sim {

const char* BugName(Bug bug) {
  static constexpr const char* kNames[] = {"none",
                                           "stamp_before_mutate",
                                           "no_undo_on_recovery",
                                           "rewrite_prepared",
                                           "prepare_early",
                                           "overwrite_staging",
                                           "index_after_mutation",
                                           "adopt_alive",
                                           "import_twice",
                                           "decided_not_recorded",
                                           "wrong_start",
                                           "no_barrier",
                                           "next_attempt_early",
                                           "phased_early",
                                           "counted_twice",
                                           "move_twice",
                                           "keep_no_gradient",
                                           "retire_early",
                                           "done_before_blocks",
                                           "overwrite_outbox",
                                           "mark_before_slice",
                                           "old_slice",
                                           "give_up_in_two",
                                           "keep_attempt",
                                           "old_world",
                                           "never_give_up",
                                           "old_share",
                                           "own_blob",
                                           "late_save",
                                           "apply_twice",
                                           "verdict_early",
                                           "off_by_one_plan",
                                           "skip_fence",
                                           "two_coordinators",
                                           "pools_late",
                                           "cut_at_sight",
                                           "give_up_decided",
                                           "copy_old_share"};
  static_assert(sizeof(kNames) / sizeof(kNames[0]) == static_cast<size_t>(Bug::kBugs));
  return kNames[static_cast<int>(bug)];
}

void HostMemory::Lose(const HostMemory& first) {
  HostMemory fresh(*job, host);
  ranks = std::move(fresh.ranks);
  owners = std::move(fresh.owners);
  planes = std::move(fresh.planes);
  grad = std::move(fresh.grad);
  sumsq = std::move(fresh.sumsq);
  norms = std::move(fresh.norms);
  for (int b = 0; b < job->blocks; ++b) reduce_stamp[b] = 0, apply_stamp[b] = 0;
  outbox = std::move(fresh.outbox);
  inbox = std::move(fresh.inbox);
  cut = std::move(fresh.cut);
  proposals = first.proposals, boundary = first.boundary;
  assignments = first.assignments;
  snapshots.clear();
}

HostMemory::HostMemory(const Job& j, int h) : job(&j), host(h), ranks(j.places), owners(kMaxSlots) {
  for (RankShared& r : ranks) {
    r.delivered.resize(j.units.size());
    r.staging.resize(j.ring ? j.ring_units : j.units.size());
  }
  for (OwnerShared& o : owners) {
    o.consumed.assign(j.units.size(), 0);
    o.sliced.assign(j.units.size(), 0);
  }
  planes.resize(j.blocks);
  grad.resize(j.blocks);
  outbox.resize(j.blocks);
  sumsq.assign(j.blocks, 0);
  norms.assign(j.blocks, 0);
  inbox.resize(j.hosts);
  cut.assign(j.hosts, 0);
  for (std::vector<Inbox>& from : inbox) {
    from.resize(j.units.size());
    for (size_t u = 0; u < j.units.size(); ++u) from[u].blocks.resize(j.units[u].blocks.size());
  }
  for (int i = 0; i < j.blocks; ++i) {
    reduce_stamp.emplace_back(0);
    apply_stamp.emplace_back(0);
    for (int e = 0; e < kElements; ++e) planes[i].param[e] = i * kElements + e;
  }
  proposals.ranges = 1;
  owners[0].decided_by_done[0].ranges = 1;
  std::vector<int32_t> hosts;
  for (int at = 0; at < j.hosts; ++at) hosts.insert(hosts.end(), j.ServersAtFirst(at), at);
  assignments.push_back({1, HostMap::Create(hosts)->Grouped(j.shard_hosts), Step(1), j.world_size});
}

World::World(const Job& j, Scheduler* scheduler, Bug b, bool t) : job(j), s(*scheduler), bug(b), trace(t) {
  for (int h = 0; h < job.hosts; ++h) {
    memory.emplace_back(job, h);
    for (int other = h + 1; other < job.hosts; ++other) links[{h, other}];
  }
  server_process.assign(kMaxSlots * job.hosts, -1);
  agent_process.assign(job.hosts, -1);
  putting.assign(job.hosts, -1);
  lost.assign(job.hosts, false);
  replaced.assign(job.hosts, false);
  slot_holder.fill(-1);
  trainer_process.assign(job.places, -1);
  trainer_finished.assign(job.places, false);
  trainer_ready.assign(job.places, -1);
}

const Operation* World::NextOperation() const {
  for (const Operation& op : operations) {
    if (op.state != Operation::kProposed) return &op;
  }
  return nullptr;
}

void World::Trace(const std::string& line) const {
  if (!trace) return;
  std::printf("%8llu  %-14s %s\n", static_cast<unsigned long long>(s.now()),
              s.current() >= 0 ? s.name(s.current()).c_str() : "", line.c_str());
}

namespace {
template <typename Take>
std::optional<AssignmentEntry> NewestThat(const std::vector<AssignmentEntry>& all, Take take) {
  std::optional<AssignmentEntry> best;
  for (const AssignmentEntry& a : all) {
    if (a.from.has_value() && take(a) && (!best.has_value() || best->epoch < a.epoch)) best = a;
  }
  return best;
}
}  // namespace

std::optional<AssignmentEntry> HostMemory::AssignmentFor(Step step) const {
  return NewestThat(assignments, [&](const AssignmentEntry& a) { return *a.from <= step; });
}
std::optional<AssignmentEntry> HostMemory::Newest() const {
  return NewestThat(assignments, [](const AssignmentEntry&) { return true; });
}
std::optional<AssignmentEntry> HostMemory::BeforeEpoch(uint64_t epoch) const {
  return NewestThat(assignments, [&](const AssignmentEntry& a) { return a.epoch < epoch; });
}

void HostMemory::Activate(uint64_t epoch, Step from) {
  for (AssignmentEntry& a : assignments) {
    if (a.epoch != epoch) continue;
    if (a.from.has_value() && *a.from != from) throw Failure{"an assignment takes effect at two steps"};
    a.from = from;
  }
}

StepId HostMemory::LeastDone(const AssignmentEntry& a) const {
  StepId least{Step(Mark::kMaxStep), 0};
  for (int m = 0; m < a.servers(); ++m) least = std::min(least, owners[m].done);
  return least;
}

StepId HostMemory::DoneByAll() const {
  const AssignmentEntry a = *Newest();
  const StepId before{Step(a.from->value() - 1), 0};
  if (const std::optional<AssignmentEntry> previous = BeforeEpoch(a.epoch); previous.has_value()) {
    const StepId done = LeastDone(*previous);
    if (done.step < before.step) return done;
  }
  const StepId done = LeastDone(a);
  return done.step <= before.step ? before : done;
}

bool HostMemory::ConsumedByAll(int unit, Mark mark, StepId current) const {
  if (mark.id() < current) return true;
  const AssignmentEntry a = *AssignmentFor(current.step);
  const BlockRange blocks = job->units[unit].blocks;
  for (int m = 0; m < a.servers(); ++m) {
    if (a.hosts.HostOf(Slot(m)) != host) continue;
    if (!Owned(blocks, Slot(m), a.hosts).empty() && Mark(owners[m].consumed[unit]) < mark) return false;
    if (!SlicedBy(blocks, Slot(m), a.hosts).empty() && Mark(owners[m].sliced[unit]) < mark) return false;
  }
  return true;
}

bool HostMemory::Settled(const Proposals& goal) const {
  const AssignmentEntry a = *Newest();
  if (a.epoch < goal.ranges) return false;
  for (int m = 0; m < a.servers(); ++m) {
    if (goal.AnyNewerThan(owners[m].Decided())) return false;
  }
  return true;
}

}  // namespace sherd::sim
