// A whole job in one process, for tests: real segments in a temporary root, real engines, trainers as
// threads. No RPC, no coordinator: the test plays it.
#ifndef SHERD_TESTS_STEP_IN_PROCESS_JOB_H_
#define SHERD_TESTS_STEP_IN_PROCESS_JOB_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "client/step_writer.h"
#include "runtime/job_memory.h"
#include "server/engine.h"

namespace sherd::tests {

class InProcessJob {
 public:
  // Aborts the test process on any failure to set up.
  InProcessJob(JobSpec spec, int servers, int workers = 1);
  ~InProcessJob();

  runtime::JobMemory& memory() { return *memory_; }
  // A trainer's own mapping.
  std::unique_ptr<runtime::JobMemory> OpenAsTrainer();
  // Ends and starts again one owner, as after a death between two effects.
  void RestartOwner(int slot);
  // Proposes `servers` owners and `world_size` ranks (0: as many as there are) from the next decision on, and
  // starts engines for new slots. New ranks have places from AddRanks. `without_trainers`: at the next
  // boundary, in the middle of a step if that is where the trainers are.
  void Resize(int servers, int world_size = 0, bool without_trainers = false);
  // Gives ranks below `places` a page and a place in which a first process stands attached.
  void AddRanks(int places);
  // Until `ready`, looked at whenever the job's bell rings.
  void Await(const std::function<bool()>& ready);
  server::Engine& engine(int slot) { return *engines_[slot]; }
  int servers() const { return static_cast<int>(engines_.size()); }

 private:
  void StartEngine(int slot);

  std::string root_;
  std::unique_ptr<runtime::JobDir> dir_;
  std::unique_ptr<runtime::JobMemory> memory_;
  std::vector<std::unique_ptr<server::Engine>> engines_;
  const int workers_;
  uint64_t ranges_epoch_ = 1;
  int world_size_;
};

}  // namespace sherd::tests

#endif  // SHERD_TESTS_STEP_IN_PROCESS_JOB_H_
