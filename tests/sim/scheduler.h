// Processes of a simulated host as fibers on one thread, in virtual time, from one seed: whoever runs may
// lose the processor, be stopped for a while or be killed at any Tick.
//
//   Scheduler s(seed, faults);
//   int id = s.Spawn("owner 0", [&] { ...; s.Tick(); ... });
//   std::string failure = s.Run([&] { return finished; }, 1000000);
//
// A killed fiber is unwound by an exception, so the simulated program holds nothing whose destructor stores
// to simulated shared memory. Not thread-safe; fibers of one scheduler run on one thread.
#ifndef SHERD_TESTS_SIM_SCHEDULER_H_
#define SHERD_TESTS_SIM_SCHEDULER_H_

#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace sherd::sim {

// splitmix64: small, seeded, the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() { return Mix(state_ += 0x9E3779B97F4A7C15); }
  // 0..n-1. REQUIRES: n >= 1.
  int Below(int n) { return static_cast<int>(Next() % static_cast<uint64_t>(n)); }
  bool Chance(int percent) { return Below(100) < percent; }
  static uint64_t Mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

// What the whole run fails with; thrown by whoever finds it.
struct Failure {
  std::string what;
};

struct Faults {
  int kills = 0;
  int pauses = 0;
  int mean_ticks = 100;  // between two of them
};

class Scheduler {
 public:
  Scheduler(uint64_t seed, Faults faults, int mean_quantum);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;

  // A new process, runnable. `mortal`: faults may hit it.
  int Spawn(std::string name, bool mortal, std::function<void()> body);
  bool Alive(int id) const { return id >= 0 && fibers_[id]->alive; }
  bool Paused(int id) const { return fibers_[id]->paused_until > now_; }
  // It stores nothing any more. REQUIRES: not the caller itself.
  void Kill(int id);

  // Called by a process, between any two of its stores: others may run here, and faults strike here.
  void Tick();
  // As a doorbell: Wait returns after a Ring that came after Listen, or after `ticks`.
  uint64_t Listen() const { return rings_; }
  void Wait(uint64_t ticket, uint64_t ticks = ~uint64_t{0});
  void Ring() { ++rings_; }

  // Runs until `finished`. Empty; or why not: a Failure, nobody can run, or more than `max_ticks`.
  std::string Run(const std::function<bool()>& finished, uint64_t max_ticks);

  uint64_t now() const { return now_; }
  int current() const { return current_; }
  const std::string& name(int id) const { return fibers_[id]->name; }
  int kills() const { return kills_; }
  // Called for each fault, with words for it.
  std::function<void(const std::string&)> on_fault;

 private:
  struct Killed {};
  struct Fiber {
    std::string name;
    bool mortal = false;
    std::function<void()> body;
    std::unique_ptr<char[]> stack;
    ucontext_t context;
    bool started = false, alive = true, unwound = false;
    uint64_t paused_until = 0;
    uint64_t waits_ring = 0, waits_until = 0;
    bool waiting = false;
  };
  static void Entry(unsigned high, unsigned low);
  void Resume(int id);
  void ToScheduler();
  void Strike();
  bool Runnable(const Fiber& f) const;

  Random random_;
  Faults faults_;
  const int mean_quantum_;
  int quantum_ = 0;
  uint64_t next_fault_ = 0;
  uint64_t now_ = 0, rings_ = 1;
  int current_ = -1, kills_ = 0;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<std::unique_ptr<char[]>> spare_stacks_;
  ucontext_t main_;
  std::string failure_;
  bool stopping_ = false;
};

}  // namespace sherd::sim

#endif  // SHERD_TESTS_SIM_SCHEDULER_H_
