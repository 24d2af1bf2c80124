// Processes of a benchmark that work when they are told to: forked before anything else happens, so that each
// has its own heap, libraries and threads, as real trainers and servers do.
//
//   Crew crew;
//   int a = crew.Add("rank 0", [&](CrewMember& self) { ...set up...; self.Serve([&](int command, int n) {
//   ... }); });
//   int b = crew.Add("rank 1", ...);
//   crew.Start();                                    // forks all; each runs its function
//   crew.Run({a, b}, kSteps, 4);                     // both at once; returns when both have answered
//   crew.member(a).values[...]                       // what they left in shared memory
//
// Whatever goes wrong in a member ends the benchmark, with a line that names the member.
#ifndef SHERD_BENCH_CREW_H_
#define SHERD_BENCH_CREW_H_

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "runtime/doorbell.h"

namespace sherd::bench {

// What the parent and one member share. Zeroed memory is its beginning.
class CrewMember {
 public:
  static constexpr int kMaxValues = 4096;

  // Answers commands with `work` until the parent is done. Called by the member, once it is set up: the first
  // command is answered after that.
  void Serve(const std::function<void(int command, int count)>& work);

  // Results, for the parent to read once Run has returned.
  void Clear() { count = 0; }
  void Put(double v) {
    if (count < kMaxValues) values[count++] = v;
  }
  std::vector<double> Values() const { return {values.begin(), values.begin() + count}; }

 private:
  friend class Crew;
  runtime::DoorbellWord bell, answer;
  std::atomic<uint32_t> asked, answered;
  int command, argument;
  int count;
  std::array<double, kMaxValues> values;
};

// Thread-compatible; one per process.
class Crew {
 public:
  Crew() = default;
  // Ends all members and waits for them.
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // `body` runs in the member's process, which ends when it returns. Returns the member's number.
  int Add(std::string name, std::function<void(CrewMember&)> body);
  void Start();
  // Gives a command to several members at the same time and blocks until all have answered.
  void Run(const std::vector<int>& members, int command, int count);
  CrewMember& member(int i) { return *members_[i].shared; }
  pid_t pid(int i) const { return members_[i].pid; }

  static constexpr int kQuit = -1;

 private:
  struct Entry {
    std::string name;
    std::function<void(CrewMember&)> body;
    CrewMember* shared = nullptr;
    pid_t pid = -1;
  };
  void CheckAlive(Entry& entry);

  std::deque<Entry> members_;
};

}  // namespace sherd::bench

#endif  // SHERD_BENCH_CREW_H_
