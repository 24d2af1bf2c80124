#include "runtime/control_page.h"

namespace sherd::runtime {

void ControlPage::PutAssignment(uint64_t epoch, int servers) {
  AssignmentEntry& e = At(epoch);
  e.from_plus_1.store(0, std::memory_order_release);
  e.servers.store(servers, std::memory_order_relaxed);
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
std::optional<Assignment> ControlPage::NewestThat(Take take) const {
  std::optional<Assignment> best;
  for (const AssignmentEntry& e : assignments_) {
    const uint64_t from_plus_1 = e.from_plus_1.load(std::memory_order_acquire);
    if (from_plus_1 == 0) continue;
    const Assignment a{e.epoch.load(std::memory_order_acquire), Step(from_plus_1 - 1),
                       e.servers.load(std::memory_order_acquire)};
    if (take(a) && (!best.has_value() || best->epoch < a.epoch)) best = a;
  }
  return best;
}

std::optional<Assignment> ControlPage::AssignmentFor(Step step) const {
  return NewestThat([&](const Assignment& a) { return a.from_step <= step; });
}

std::optional<Assignment> ControlPage::Before(uint64_t epoch) const {
  return NewestThat([&](const Assignment& a) { return a.epoch < epoch; });
}

std::optional<Assignment> ControlPage::Newest() const {
  return NewestThat([](const Assignment&) { return true; });
}

}  // namespace sherd::runtime
