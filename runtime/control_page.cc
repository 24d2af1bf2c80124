#include "runtime/control_page.h"

#include <algorithm>
#include <vector>

#include "core/job_spec.h"

namespace sherd::runtime {

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

std::optional<Assignment> ControlPage::Active::Read() const {
  if (entry == nullptr) return std::nullopt;
  return ControlPage::Read(*entry, epoch, from_plus_1);
}

Assignment ControlPage::Read(const AssignmentEntry& e, uint64_t epoch, uint64_t from_plus_1) {
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

HostMap ControlPage::HostsOf(const AssignmentEntry& e) {
  std::vector<int32_t> hosts(std::clamp(e.servers.load(std::memory_order_acquire), 1, kMaxSlots));
  for (size_t m = 0; m < hosts.size(); ++m) hosts[m] = e.host_of[m].load(std::memory_order_relaxed);
  absl::StatusOr<HostMap> map = HostMap::Create(hosts);
  return map.ok() ? *std::move(map) : HostMap::OneHost(static_cast<int>(hosts.size()));
}

std::optional<Assignment> ControlPage::AssignmentFor(Step step) const {
  return NewestThat([&](uint64_t, Step from) { return from <= step; }).Read();
}

std::optional<uint64_t> ControlPage::EpochFor(Step step) const {
  const Active a = NewestThat([&](uint64_t, Step from) { return from <= step; });
  return a.entry == nullptr ? std::nullopt : std::optional<uint64_t>(a.epoch);
}

std::optional<Assignment> ControlPage::Before(uint64_t epoch) const {
  return NewestThat([&](uint64_t e, Step) { return e < epoch; }).Read();
}

std::optional<Assignment> ControlPage::Newest() const {
  return NewestThat([](uint64_t, Step) { return true; }).Read();
}

}  // namespace sherd::runtime
