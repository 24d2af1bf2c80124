// One slot's owner: drives a StepPipeline over the job's shared memory. A thread of its own; nothing on its
// path is an RPC.
//
//   auto engine = Engine::Start(memory, Slot(0), options);        // after the predecessor in the slot is
//   seen dead engine->progress();                                           // for status and metrics, from
//   any thread engine->Stop();                                               // between two effects; what
//   stands in memory is adoptable
//
// Between two looks it sleeps on the slot's doorbell. It finds out by itself which assignment is in force,
// enters when the slot becomes part of one, and stands idle while it is not.
#ifndef SHERD_SERVER_ENGINE_H_
#define SHERD_SERVER_ENGINE_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/step_pipeline.h"
#include "runtime/doorbell.h"
#include "runtime/job_memory.h"
#include "server/block_work.h"
#include "server/slice_work.h"
#include "server/worker_pool.h"

namespace sherd::server {

struct EngineOptions {
  int workers = 1;  // threads that work on blocks, 1..runtime::kMaxWorkers
  runtime::SpinPolicy spin = runtime::SpinPolicy::None();
  // While every trainer waits for the owners, when their cores are free.
  runtime::SpinPolicy spin_among_owners = runtime::SpinPolicy::None();
  // Called from the engine's thread when it can not go on (no memory for a page, a damaged segment). It keeps
  // trying.
  std::function<void(const absl::Status&)> on_error;
};

class Engine {
 public:
  struct Progress {
    StepId current;    // the step in hand
    bool idle = true;  // the slot is not part of the assignment in force
    uint64_t ranges_epoch = 0;
    uint64_t commits = 0, skips = 0, rejects = 0;  // verdicts carried out by this engine
    int64_t owned_elements = 0;
  };

  // REQUIRES: nobody else acts in this slot, nor will. `memory` must outlive the engine.
  static absl::StatusOr<std::unique_ptr<Engine>> Start(runtime::JobMemory* memory, Slot slot,
                                                       EngineOptions options);
  ~Engine();

  // Returns when the thread has ended. Idempotent.
  void Stop();

  Slot slot() const { return slot_; }
  Progress progress() const;
  const BlockWorkCounters& counters() const { return counters_; }

 private:
  Engine(runtime::JobMemory* memory, Slot slot, EngineOptions options, runtime::OwnerRecords* records);
  void Loop();
  // Begins the first touch of the slot's memory, once.
  void StartWarming();
  // Every rank has recorded its step: what is left to do is the owners'.
  bool TrainersWait() const;
  // Adopts the slot as it stands in memory and builds the pipeline of the assignment in force; false while
  // the slot is in none.
  bool EnsurePipeline();
  // The assignment that this slot works in next, having entered it if it is new there. nullopt: none, or not
  // yet.
  std::optional<runtime::Assignment> FindAssignment();
  // Shows the pipeline everything that stands in memory.
  absl::Status Scan();
  // Sums for other hosts.
  absl::Status Slice(bool* worked);
  absl::Status CarryOut();
  absl::Status Reduce(const std::vector<Effect>& effects, size_t* i);
  void Prepare(const Effect& e);
  absl::Status PreUpdate(const Effect& e);
  void StoreVerdict();
  absl::Status Apply();
  void PublishDone(const Effect& e);
  void PublishBoundary(const Effect& e);
  absl::Status DecideBoundary(const Effect& e);
  void ChangeRanges(const Effect& e);
  void ShowOwner(Slot slot);
  // Of other hosts through the agent.
  void RingOwners();
  // And whoever waits for steps in general: the coordinator, readers of snapshots.
  void RingTrainers();
  // Trainers, whoever waits for steps, and all owners.
  void RingAll();

  runtime::JobMemory* const memory_;
  const Slot slot_;
  const EngineOptions options_;
  runtime::OwnerRecords* const records_;
  WorkerPool pool_;
  BlockWorkCounters counters_;
  BlockWork work_;
  SliceWork slices_;

  // The engine thread's.
  std::optional<StepPipeline> pipeline_;
  runtime::Assignment assignment_;
  std::vector<runtime::OwnerRecords*> owners_;  // of assignment_, in slot order
  std::vector<std::vector<uint64_t>> marks_;    // per rank and unit, as last shown
  std::vector<Effect> effects_;
  Proposals decided_before_;  // before the verdict in hand
  int64_t done_ns_ = 0;       // when the last DONE was published; 0: by a predecessor
  std::string last_error_;

  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> current_{0}, ranges_epoch_{0}, commits_{0}, skips_{0}, rejects_{0};
  std::atomic<int64_t> owned_elements_{0};
  std::atomic<bool> idle_{true};
  std::thread thread_, warming_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_ENGINE_H_
