#include "tests/sim/scheduler.h"

#include <algorithm>
#include <utility>

namespace sherd::sim {
namespace {
constexpr size_t kStackBytes = 128 << 10;
}  // namespace

Scheduler::Scheduler(uint64_t seed, Faults faults, int mean_quantum)
    : random_(seed), faults_(faults), mean_quantum_(mean_quantum) {
  next_fault_ = 1 + random_.Below(2 * faults_.mean_ticks);
}

Scheduler::~Scheduler() {
  stopping_ = true;
  for (size_t i = 0; i < fibers_.size(); ++i) {
    fibers_[i]->alive = false;
    if (!fibers_[i]->unwound) Resume(static_cast<int>(i));
  }
}

int Scheduler::Spawn(std::string name, bool mortal, std::function<void()> body) {
  auto f = std::make_unique<Fiber>();
  f->name = std::move(name);
  f->mortal = mortal;
  f->body = std::move(body);
  if (spare_stacks_.empty()) {
    f->stack.reset(new char[kStackBytes]);
  } else {
    f->stack = std::move(spare_stacks_.back());
    spare_stacks_.pop_back();
  }
  fibers_.push_back(std::move(f));
  return static_cast<int>(fibers_.size()) - 1;
}

void Scheduler::Kill(int id) {
  ++rings_;  // its exit is seen
  fibers_[id]->alive = false;
}

void Scheduler::Entry(unsigned high, unsigned low) {
  auto* s = reinterpret_cast<Scheduler*>(static_cast<uintptr_t>(high) << 32 | low);
  Fiber& f = *s->fibers_[s->current_];
  try {
    if (f.alive) f.body();
  } catch (const Killed&) {
  } catch (const Failure& e) {
    if (s->failure_.empty()) s->failure_ = f.name + ": " + e.what;
  }
  if (f.alive) ++s->rings_;
  f.alive = false;
  f.unwound = true;
  s->ToScheduler();
}

void Scheduler::Resume(int id) {
  Fiber& f = *fibers_[id];
  current_ = id;
  if (!f.started) {
    f.started = true;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStackBytes;
    f.context.uc_link = nullptr;
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&f.context, reinterpret_cast<void (*)()>(&Scheduler::Entry), 2,
                static_cast<unsigned>(self >> 32), static_cast<unsigned>(self));
  }
  swapcontext(&main_, &f.context);
  current_ = -1;
  if (f.unwound) {
    f.body = nullptr;
    spare_stacks_.push_back(std::move(f.stack));
  }
}

void Scheduler::ToScheduler() {
  Fiber& f = *fibers_[current_];
  swapcontext(&f.context, &main_);
  if (!f.alive) throw Killed();
}

void Scheduler::Strike() {
  next_fault_ = now_ + 1 + random_.Below(2 * faults_.mean_ticks);
  if (faults_.kills + faults_.pauses == 0) return;
  // Mostly whoever acts: between its stores.
  int victim = current_;
  if (random_.Chance(30) || !fibers_[victim]->mortal)
    victim = random_.Below(static_cast<int>(fibers_.size()));
  Fiber& f = *fibers_[victim];
  if (!f.mortal || !f.alive) return;
  const bool kill = random_.Below(faults_.kills + faults_.pauses) < faults_.kills;
  if (on_fault) on_fault((kill ? "kill " : "stop ") + f.name);
  if (kill) {
    --faults_.kills;
    ++kills_;
    Kill(victim);
  } else {
    --faults_.pauses;
    f.paused_until = now_ + 1 + random_.Below(2000);
  }
}

void Scheduler::Tick() {
  Fiber& f = *fibers_[current_];
  if (!f.alive) throw Killed();
  ++now_;
  if (now_ >= next_fault_) Strike();
  if (--quantum_ > 0 && f.alive && f.paused_until <= now_) return;
  ToScheduler();
}

void Scheduler::Wait(uint64_t ticket, uint64_t ticks) {
  Fiber& f = *fibers_[current_];
  f.waiting = true;
  f.waits_ring = ticket;
  f.waits_until = ticks == ~uint64_t{0} ? ticks : now_ + ticks;
  ++now_;
  ToScheduler();
  f.waiting = false;
}

bool Scheduler::Runnable(const Fiber& f) const {
  if (!f.alive || f.paused_until > now_) return false;
  return !f.waiting || f.waits_ring != rings_ || f.waits_until <= now_;
}

std::string Scheduler::Run(const std::function<bool()>& finished, uint64_t max_ticks) {
  std::vector<int> ready;
  while (!finished()) {
    if (now_ > max_ticks) return "no end after " + std::to_string(now_) + " events";
    ready.clear();
    uint64_t next = ~uint64_t{0};
    for (size_t i = 0; i < fibers_.size(); ++i) {
      const Fiber& f = *fibers_[i];
      if (f.unwound) continue;
      if (!f.alive) {
        Resume(static_cast<int>(i));  // unwinds; stores nothing
      } else if (Runnable(f)) {
        ready.push_back(static_cast<int>(i));
      } else {
        const uint64_t wakes =
            f.waiting && f.waits_ring == rings_ ? std::max(f.waits_until, f.paused_until) : f.paused_until;
        next = std::min(next, wakes);
      }
    }
    if (!failure_.empty()) return failure_;
    if (ready.empty()) {
      if (next == ~uint64_t{0}) return "everybody waits";
      now_ = std::max(next, now_ + 1);
      continue;
    }
    quantum_ = 1 + random_.Below(2 * mean_quantum_);
    Resume(ready[random_.Below(static_cast<int>(ready.size()))]);
    if (!failure_.empty()) return failure_;
  }
  return "";
}

}  // namespace sherd::sim
