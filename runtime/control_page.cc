#include "runtime/control_page.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/job_spec.h"

namespace sherd::runtime {

void ControlPage::LinkState::Set(State s, absl::string_view text) {
  const size_t n = std::min(text.size(), sizeof(words) - 1);
  if (n > 0) std::memcpy(words, text.data(), n);
  words[n] = 0;
  state.store(s, std::memory_order_release);
}

std::string ControlPage::LinkState::Words() const {
  return std::string(words, ::strnlen(words, sizeof(words)));
}

std::string ControlPage::LinkProblem() const {
  for (int h = 0; h < kHosts; ++h) {
    if (std::string problem = LinkProblem(h); !problem.empty()) return problem;
  }
  return "";
}

std::string ControlPage::LinkProblem(int host) const {
  const uint32_t state = links[host].state.load(std::memory_order_acquire);
  return state == LinkState::kSilent || state == LinkState::kDown ? links[host].Words() : "";
}

void ControlPage::PutAssignment(uint64_t epoch, const HostMap& hosts, int world_size, Step not_before) {
  AssignmentEntry& e = At(epoch);
  e.from_plus_1.store(0, std::memory_order_release);
  for (int m = 0; m < hosts.servers(); ++m) {
    e.host_of[m].store(static_cast<uint8_t>(hosts.HostOf(Slot(m))), std::memory_order_relaxed);
  }
  e.servers.store(hosts.servers(), std::memory_order_relaxed);
  e.world_size.store(world_size, std::memory_order_relaxed);
  e.not_before.store(not_before.value(), std::memory_order_relaxed);
  e.epoch.store(epoch, std::memory_order_release);
}

void ControlPage::Activate(uint64_t epoch, Step from) {
  AssignmentEntry& e = At(epoch);
  if (e.epoch.load(std::memory_order_acquire) != epoch) return;
  // Once: an owner that comes to it later, after a death or as a new slot, must not move it.
  uint64_t unset = 0;
  e.from_plus_1.compare_exchange_strong(unset, from.value() + 1, std::memory_order_seq_cst);
}

template <typename Take>
ControlPage::Active ControlPage::NewestThat(Take take) const {
  Active best;
  for (const AssignmentEntry& e : assignments_) {
    const uint64_t from_plus_1 = e.from_plus_1.load(std::memory_order_acquire);
    const uint64_t epoch = e.epoch.load(std::memory_order_acquire);
    if (from_plus_1 == 0 || (best.entry != nullptr && epoch < best.epoch)) continue;
    if (!take(epoch, Step(from_plus_1 - 1))) continue;
    best = {&e, epoch, from_plus_1};
  }
  return best;
}

std::optional<Assignment> ControlPage::Read(const Active& a) const {
  if (a.entry == nullptr) return std::nullopt;
  return Read(*a.entry, a.epoch, a.from_plus_1);
}

Assignment ControlPage::Read(const AssignmentEntry& e, uint64_t epoch, uint64_t from_plus_1) const {
  Assignment a;
  a.epoch = epoch;
  a.from_step = Step(from_plus_1 == 0 ? 0 : from_plus_1 - 1);
  a.hosts = HostsOf(e);
  a.servers = a.hosts.servers();
  a.world_size = std::clamp(e.world_size.load(std::memory_order_relaxed), 1, kMaxWorldSize);
  a.not_before = Step(e.not_before.load(std::memory_order_relaxed));
  return a;
}

bool ControlPage::MayBegin(uint64_t epoch, Step step) const {
  const AssignmentEntry& e = assignments_[epoch % kAssignments];
  if (epoch == 0 || e.epoch.load(std::memory_order_acquire) != epoch) return true;
  return Step(e.not_before.load(std::memory_order_relaxed)) <= step;
}

std::optional<Assignment> ControlPage::Find(uint64_t epoch) const {
  const AssignmentEntry& e = assignments_[epoch % kAssignments];
  const uint64_t from_plus_1 = e.from_plus_1.load(std::memory_order_acquire);
  if (epoch == 0 || e.epoch.load(std::memory_order_acquire) != epoch) return std::nullopt;
  return Read(e, epoch, from_plus_1);
}

HostMap ControlPage::HostsOf(const AssignmentEntry& e) const {
  std::vector<int32_t> hosts(std::clamp(e.servers.load(std::memory_order_acquire), 1, kMaxSlots));
  for (size_t m = 0; m < hosts.size(); ++m) hosts[m] = e.host_of[m].load(std::memory_order_relaxed);
  absl::StatusOr<HostMap> map = HostMap::Create(hosts);
  if (!map.ok()) return HostMap::OneHost(static_cast<int>(hosts.size()));
  return shard_hosts > 0 && map->hosts() % shard_hosts == 0 ? map->Grouped(shard_hosts) : *std::move(map);
}

std::optional<Assignment> ControlPage::AssignmentFor(Step step) const {
  return Read(NewestThat([&](uint64_t, Step from) { return from <= step; }));
}

std::optional<uint64_t> ControlPage::EpochFor(Step step) const {
  const Active a = NewestThat([&](uint64_t, Step from) { return from <= step; });
  return a.entry == nullptr ? std::nullopt : std::optional<uint64_t>(a.epoch);
}

std::optional<Assignment> ControlPage::Before(uint64_t epoch) const {
  return Read(NewestThat([&](uint64_t e, Step) { return e < epoch; }));
}

namespace {

struct AssignmentCopy {
  uint64_t epoch, from_plus_1;
  int32_t servers, world_size;
  uint64_t not_before;
  uint8_t host_of[kMaxSlots];
};

}  // namespace

// Plain words, in the order in which they become true.
struct ControlPage::PageCopy {
  AssignmentCopy assignments[kAssignments];
  MemberEntry::Copy servers[kMaxSlots];
  uint64_t import_steps[kImportSteps];
  uint64_t proposals[3], boundary[3];
  uint64_t import_generation;
  uint32_t shutting_down, initialized;
  uint64_t epoch;
};

std::string ControlPage::Copy() const {
  PageCopy c;
  std::memset(static_cast<void*>(&c), 0, sizeof(c));
  c.epoch = epoch.load(std::memory_order_acquire);
  c.initialized = initialized.load(std::memory_order_acquire);
  c.shutting_down = shutting_down.load(std::memory_order_acquire);
  const auto words = [](const ProposalWordsShared& from, uint64_t* to) {
    const Proposals p = from.Read();
    to[0] = p.ranges, to[1] = p.snapshot, to[2] = p.import;
  };
  c.import_generation = import_generation.load(std::memory_order_acquire);
  words(boundary, c.boundary);
  words(proposals, c.proposals);
  for (int i = 0; i < kImportSteps; ++i) c.import_steps[i] = import_steps[i].load(std::memory_order_acquire);
  for (int i = 0; i < kMaxSlots; ++i) c.servers[i] = servers[i].Read();
  for (int i = 0; i < kAssignments; ++i) {
    const AssignmentEntry& e = assignments_[i];
    c.assignments[i].from_plus_1 = e.from_plus_1.load(std::memory_order_acquire);
    c.assignments[i].epoch = e.epoch.load(std::memory_order_acquire);
    c.assignments[i].servers = e.servers.load(std::memory_order_acquire);
    c.assignments[i].world_size = e.world_size.load(std::memory_order_relaxed);
    c.assignments[i].not_before = e.not_before.load(std::memory_order_relaxed);
    for (int m = 0; m < kMaxSlots; ++m)
      c.assignments[i].host_of[m] = e.host_of[m].load(std::memory_order_relaxed);
  }
  return std::string(reinterpret_cast<const char*>(&c), sizeof(c));
}

bool ControlPage::Put(absl::string_view copy) {
  PageCopy c;
  if (copy.size() != sizeof(c)) return false;
  std::memcpy(&c, copy.data(), sizeof(c));
  for (int i = 0; i < kAssignments; ++i) {
    const AssignmentCopy& from = c.assignments[i];
    if (from.epoch == 0) continue;
    if (assignments_[i].epoch.load(std::memory_order_acquire) != from.epoch) {
      std::vector<int32_t> hosts(std::clamp(from.servers, 1, kMaxSlots));
      for (size_t m = 0; m < hosts.size(); ++m) hosts[m] = from.host_of[m];
      const absl::StatusOr<HostMap> map = HostMap::Create(std::move(hosts));
      if (!map.ok()) return false;
      PutAssignment(from.epoch, *map, from.world_size, Step(from.not_before));
    }
    // An owner here may have activated it before the first host's did.
    if (from.from_plus_1 != 0) Activate(from.epoch, Step(from.from_plus_1 - 1));
  }
  for (int i = 0; i < kMaxSlots; ++i) servers[i].Put(c.servers[i]);
  for (int i = 0; i < kImportSteps; ++i) {
    if (c.import_steps[i] > import_steps[i].load()) import_steps[i].store(c.import_steps[i]);
  }
  const auto words = [](const uint64_t* from, ProposalWordsShared* to) {
    to->ranges.store(from[0], std::memory_order_release);
    to->snapshot.store(from[1], std::memory_order_release);
    to->import.store(from[2], std::memory_order_release);
  };
  words(c.proposals, &proposals);
  words(c.boundary, &boundary);
  import_generation.store(c.import_generation, std::memory_order_release);
  shutting_down.store(c.shutting_down, std::memory_order_release);
  initialized.store(c.initialized, std::memory_order_release);
  epoch.store(c.epoch, std::memory_order_release);
  return true;
}

std::optional<Assignment> ControlPage::Newest() const {
  return Read(NewestThat([](uint64_t, Step) { return true; }));
}

}  // namespace sherd::runtime
