// The arms of bench:step: groups of processes that do one kind of training step together, measured in turns.
//
//   StepArms arms(model, kWorld, sherdd);
//   StepArm* local = arms.AddDataParallel(...);  StepArm* stage1 = arms.AddSherd(model, 1);
//   arms.Start();                                // forks everything; each arm then sleeps until its turn
//   arms.Take(stage1, 4);                        // four steps of it, in all its ranks
//
// With a HostNetwork rank r is host r's, with a server there.
#ifndef SHERD_BENCH_STEP_ARMS_H_
#define SHERD_BENCH_STEP_ARMS_H_

#include <sys/types.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "bench/crew.h"
#include "bench/host_network.h"
#include "bench/sherd_servers.h"
#include "bench/step_model.h"
#include "client/options.h"

namespace sherd::bench {

struct StepArm {
  std::string name;
  int command = 0;
  std::vector<int> members;    // its ranks in the crew
  std::vector<pid_t> servers;  // its other processes
  std::string job, endpoint;   // Sherd's

  // Filled by Take.
  std::vector<double> ms;        // of every step, by the clock, in every rank
  std::vector<double> turn_ms;   // the median of each turn
  std::vector<double> turn_cpu;  // of each turn: milliseconds on cores a step, all processes together
  double first_ms = 0;           // the very first step, in the slowest rank
  int steps = 0;                 // in all
  double sleeps = 0;             // a step, all processes together, in the last turn
  double staged_bytes = 0;       // copied to staging a step by all ranks, in the last turn

  double best_ms() const;
  // How much longer its steps are than those of `other`: medians over turns, each against the turn of `other`
  // in the same round.
  double BeyondMs(const StepArm& other) const;
  double BeyondCpuMs(const StepArm& other) const;
};

// Thread-compatible; one per process. Ends the process with a line on any error.
class StepArms {
 public:
  // `hosts`: borrowed, with as many hosts as there are ranks; null: one host.
  StepArms(int world_size, std::string sherdd, const HostNetwork* hosts = nullptr);
  ~StepArms();

  // Arms of one group of processes, in this order: forward and backward alone; DDP with libtorch's AdamW, its
  // all-reduces after backward or during it; the same with a fused update.
  static constexpr int kDataParallelArms = 5;
  std::vector<StepArm*> AddDataParallel(const std::string& label, const StepModel& model);
  // ZeroOptimizer, with one server a rank.
  StepArm* AddSherd(const std::string& label, const StepModel& model, int stage,
                    const Stage3Options& stage3 = {});

  void Start();
  // `steps` of the arm. The first turn of an arm also sets it up; take it with `count` false.
  void Take(StepArm* arm, int steps, bool count = true);

 private:
  void RunDataParallel(CrewMember& self, const StepModel& model, int rank,
                       const std::string& rendezvous) const;
  void RunSherd(CrewMember& self, const StepModel& model, int stage, const Stage3Options& stage3, int rank,
                const SherdServers& servers) const;
  // The servers of a job, all on one host or one on each. Those of rank r: the result + r, of several hosts.
  size_t StartServers();
  bool several() const { return hosts_ != nullptr; }
  std::vector<pid_t> Pids(const StepArm& arm) const;

  const int world_size_;
  const std::string sherdd_;
  const HostNetwork* const hosts_;
  std::vector<std::string> rendezvous_;  // and secrets: files that go at the end
  std::deque<SherdServers> servers_;
  std::deque<StepArm> arms_;
  std::unique_ptr<Crew> crew_ = std::make_unique<Crew>();
};

}  // namespace sherd::bench

#endif  // SHERD_BENCH_STEP_ARMS_H_
