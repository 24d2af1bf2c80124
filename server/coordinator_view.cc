// Coordinator: what `sherd status` shows.
#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/host_map.h"
#include "proto/convert.h"
#include "proto/epoch_record.h"
#include "runtime/clock.h"
#include "server/coordinator.h"

namespace sherd::server {
namespace {

using runtime::MemberEntry;
using runtime::MutexLock;

// Elements of the layout that `slot` owns, padding not counted; and its bytes over all planes.
std::pair<int64_t, int64_t> OwnedBy(const runtime::JobMemory& memory, int slot, const HostMap& hosts) {
  std::pair<int64_t, int64_t> out(0, 0);
  for (const UnitRange& range : OwnedRanges(memory.layout(), Slot(slot), hosts)) {
    const bool trainable = range.blocks.begin < memory.trainable_blocks();
    out.second += range.blocks.size() * kBlockElements * 4 * (trainable ? memory.planes() : 1);
    if (memory.compute() != nullptr) out.second += range.blocks.size() * kBlockElements * 2;
    memory.layout().ForEachRun(range.blocks, [&](int t, BlockRange run) {
      out.first += (run.size() - 1) * kBlockElements + memory.layout().tensors()[t].ElementsIn(run.end - 1);
    });
  }
  return out;
}

int64_t StagingBytes(runtime::JobMemory& memory, Rank rank) {
  int64_t bytes = 0;
  for (uint32_t chunk = 0;; ++chunk) {
    absl::StatusOr<absl::Span<char>> staging = memory.Staging(rank, chunk);
    if (!staging.ok()) return bytes;
    bytes += staging->size();
  }
}

}  // namespace

// Why a step does not end stands beside what waits for its end.
std::string Coordinator::WaitsFor() const {
  if (std::string away = home_->StoreIsAway(); !away.empty()) return away;
  std::vector<std::string> waits;
  if (!commit_waits_.empty()) {
    waits.push_back(commit_waits_);
  } else if (state_.waiting()) {
    waits.push_back(state_.Describe(runtime::SteadyNow()));
  } else if (memory_ != nullptr && memory_->control().initialized.load(std::memory_order_acquire) == 0) {
    waits.push_back("waiting for rank 0 to write the initial values");
  } else if (memory_ != nullptr) {
    if (std::string link = memory_->control().LinkProblem(); !link.empty()) return link;
  }
  constexpr size_t kNamed = 4;
  for (size_t i = 0; i < stalled_.size() && i < kNamed; ++i)
    waits.push_back(absl::StrCat(waits.empty() ? "waiting for " : "for ", ShowStalled(stalled_[i])));
  if (stalled_.size() > kNamed) waits.push_back(absl::StrCat("for ", stalled_.size() - kNamed, " more"));
  return absl::StrJoin(waits, "; ");
}

std::string Coordinator::ShowPlace(const StallWatch::Stalled& s) const {
  const size_t place = s.place;
  // A place that a resize has just taken away has no name any more.
  if (place >= (s.trainer ? committed_.trainers.size() : committed_.servers.size()))
    return absl::StrCat(s.trainer ? "rank " : "the server of slot ", s.place);
  const std::string process = absl::StrCat(
      "host ", s.trainer ? committed_.trainers[place].host : committed_.servers[place].host, ", process ",
      Show(s.trainer ? committed_.trainers[place].process : committed_.servers[place].process));
  return s.trainer
             ? absl::StrCat("rank ", s.place, " (", process, ")")
             : absl::StrCat("server ", committed_.servers[place].id, " (slot ", s.place, ", ", process, ")");
}

std::string Coordinator::ShowStalled(const StallWatch::Stalled& s) const {
  return absl::StrCat(ShowPlace(s), ", which lives but has ",
                      s.stopped ? "been stopped by a signal or a debugger" : "not moved", " for ",
                      absl::ToInt64Seconds(s.since), " s: ", s.Missing());
}

std::vector<StallWatch::Stalled> Coordinator::stalled() const {
  MutexLock lock(mu_);
  return stalled_;
}

void Coordinator::AddServer(const ServerMember& member, int slot, v1::Member::State state,
                            v1::Cluster* out) const {
  v1::Member* m = out->add_members();
  m->set_kind(v1::Member::KIND_SERVER);
  m->set_id(member.id);
  m->set_address(member.address);
  m->set_state(state);
  if (state != v1::Member::STATE_LOST) ToProto(member.process, m->mutable_process());
  if (options_.hosts > 1) m->set_host(member.host);
  m->set_must_die(doomed_.count({member.host, {member.process.pid, member.process.start}}) != 0);
  if (slot < 0) return;
  m->add_slots(slot);
  m->set_incarnation(member.incarnation.value());
  for (const StallWatch::Stalled& s : stalled_) {
    if (s.trainer || s.place != slot || state != v1::Member::STATE_ACTIVE) continue;
    m->set_state(v1::Member::STATE_STALLED);
    ToProto(s.since, m->mutable_stalled_for());
  }
  if (memory_ == nullptr || slot >= committed_.owning_servers) return;
  const auto [elements, bytes] =
      OwnedBy(*memory_, slot,
              SlotHosts(committed_, committed_.owning_servers)->Grouped(memory_->control().shard_hosts));
  m->set_owned_elements(elements);
  m->set_owned_bytes(bytes);
  if (slot >= committed_.world_size) return;
  const MemberEntry& trainer = memory_->trainer(Rank(slot));
  if (trainer.state.load(std::memory_order_acquire) != MemberEntry::kAttached) return;
  m->mutable_trainer()->set_pid(trainer.pid.load());
  m->mutable_trainer()->set_start_ticks(trainer.start_ticks.load());
}

void Coordinator::AddTrainer(int rank, v1::Cluster* out) const {
  v1::Member* m = out->add_members();
  m->set_kind(v1::Member::KIND_TRAINER);
  m->set_rank(rank);
  m->set_id(absl::StrCat("rank-", rank));
  m->set_state(v1::Member::STATE_WAITING);
  if (memory_ == nullptr) return;
  const MemberEntry& entry = memory_->trainer(Rank(rank));
  m->set_incarnation(entry.incarnation.load());
  m->set_owned_bytes(StagingBytes(*memory_, Rank(rank)) + runtime::RankRecords::BytesFor(memory_->spec()));
  if (options_.hosts > 1 && rank < static_cast<int>(committed_.trainers.size())) {
    const TrainerMember& member = committed_.trainers[rank];
    m->set_host(member.host);
    m->set_must_die(doomed_.count({member.host, {member.process.pid, member.process.start}}) != 0);
  }
  switch (entry.state.load(std::memory_order_acquire)) {
    case MemberEntry::kAttached:
      m->set_state(v1::Member::STATE_ACTIVE);
      m->mutable_process()->set_pid(entry.pid.load());
      m->mutable_process()->set_start_ticks(entry.start_ticks.load());
      break;
    case MemberEntry::kFinished:
      m->set_state(v1::Member::STATE_FINISHED);
      break;
    case MemberEntry::kDead:
      m->set_state(v1::Member::STATE_LOST);
      break;
    default:
      break;
  }
  if (m->state() == v1::Member::STATE_ACTIVE && rank >= committed_.world_size) {
    m->set_state(v1::Member::STATE_JOINING);
  }
  const bool leaving = committed_.desired_trainers != 0 && rank >= committed_.desired_trainers;
  if (m->state() == v1::Member::STATE_ACTIVE && leaving) m->set_state(v1::Member::STATE_LEAVING);
  for (const StallWatch::Stalled& s : stalled_) {
    if (!s.trainer || s.place != rank || m->state() != v1::Member::STATE_ACTIVE) continue;
    m->set_state(v1::Member::STATE_STALLED);
    ToProto(s.since, m->mutable_stalled_for());
  }
}

void Coordinator::AddHosts(v1::Cluster* out) const {
  for (int h = 0; options_.hosts > 1 && h < options_.hosts; ++h) {
    v1::Host* host = out->add_hosts();
    host->set_index(h);
    if (h < static_cast<int>(state_.doc().hosts.size())) {
      const HostMember& member = state_.doc().hosts[h];
      host->set_name(member.name);
      host->set_ranks(member.ranks);
      host->set_servers(member.servers);
    }
    const auto it = hosts_.find(h);
    if (it == hosts_.end()) continue;
    host->set_data_address(it->second.data_address());
    host->set_gathered_peak_bytes(it->second.gathered_peak_bytes());
    host->set_rpc_address(it->second.rpc_address());
    host->set_step(it->second.step());
    *host->mutable_links() = it->second.links();
  }
}

v1::Cluster Coordinator::ViewLocked() const {
  v1::Cluster out;
  out.set_job(options_.job);
  out.set_job_dir(home_->dir().path());
  out.set_version(version_);
  out.set_epoch(committed_.epoch.value());
  out.set_servers(committed_.owning_servers);
  out.set_desired_servers(state_.formed() ? committed_.desired_servers : options_.expected_servers);
  out.set_waiting_for(WaitsFor());
  out.set_coordinator_id(options_.server_id);
  out.set_coordinator_address(options_.address);
  AddHosts(&out);
  for (size_t s = 0; s < committed_.servers.size(); ++s) {
    // The state may be ahead of what is committed: then the slot is about to change hands anyway.
    const bool known = s < state_.doc().servers.size();
    const Liveness liveness =
        known ? state_.server_liveness(Slot(static_cast<int32_t>(s))) : Liveness::kAlive;
    const v1::Member::State state = liveness == Liveness::kDead   ? v1::Member::STATE_LOST
                                    : liveness == Liveness::kLeft ? v1::Member::STATE_LEAVING
                                    : committed_.servers[s].id == committed_.draining
                                        ? v1::Member::STATE_LEAVING
                                        : v1::Member::STATE_ACTIVE;
    AddServer(committed_.servers[s], static_cast<int>(s), state, &out);
  }
  for (const ServerMember& spare : state_.spares()) AddServer(spare, -1, v1::Member::STATE_WAITING, &out);
  for (const auto& [id, process] : retired_)
    AddServer({id, "", "", process, Incarnation(0)}, -1, v1::Member::STATE_LEAVING, &out);
  if (memory_ == nullptr) return out;
  const JobSpec& spec = memory_->spec();
  out.set_world_size(committed_.world_size);
  out.set_desired_trainers(committed_.desired_trainers != 0 ? committed_.desired_trainers
                                                            : committed_.world_size);
  out.set_stage(spec.stage);
  ToProto(spec, out.mutable_optimizer());
  out.set_initialized(memory_->control().initialized.load(std::memory_order_acquire) != 0);
  if (absl::StatusOr<StepId> done = memory_->DoneByAll(); done.ok()) out.set_step(done->step.value());
  ToProto(spec, out.mutable_precision());
  const LossScale scale = memory_->CurrentLossScale();
  out.set_loss_scale(scale.scale);
  out.set_skipped_steps(scale.skipped);
  if (scale.floor != 0) out.set_training_error(FloorMessage(scale));
  out.set_layout_hash(spec.layout.hash());
  out.set_total_elements(spec.layout.total_elements());
  out.set_tensors(spec.layout.tensors().size());
  for (const std::string& plane : spec.PlaneNames()) out.add_planes(plane);
  int64_t bytes = runtime::JobMemory::BytesFor(spec);
  for (int r = 0; r < memory_->places(); ++r) {
    if (r < committed_.wanted_trainers()) AddTrainer(r, &out);
    if (r >= spec.world_size) bytes += runtime::RankRecords::BytesFor(spec);
    bytes += StagingBytes(*memory_, Rank(r));
  }
  out.set_shared_memory_bytes(bytes);
  return out;
}

v1::Cluster Coordinator::View() const {
  MutexLock lock(mu_);
  return ViewLocked();
}

absl::StatusOr<v1::Cluster> Coordinator::WaitForChange(uint64_t after, absl::Time deadline) const {
  MutexLock lock(mu_);
  while (version_ == after) {
    if (stop_) return absl::UnavailableError("this server's coordinator stops: ask another server");
    const absl::Time now = runtime::SteadyNow();
    if (now >= deadline) return absl::DeadlineExceededError("nothing changed in time");
    changed_.WaitFor(mu_, deadline - now);
  }
  return ViewLocked();
}

}  // namespace sherd::server
