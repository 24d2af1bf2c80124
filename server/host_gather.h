// Brings this host the units of a stage-3 model that its trainers want, once for all of them, and lets go of
// those that nobody wants (DESIGN.md, several hosts, stage 3). What to do is GatherPlan's to say; this
// carries it out: memory, requests, and the word that a unit is here.
//
//   HostGather gather(memory, spin);                  // the agent's; from now on it acts
//   gather.Asked(unit)                                // to be asked of every host that owns some of the unit
//   if (gather.Wants(unit, request)) ...              // an answer: receive it into the parameters' place
//   gather.Arrived(/*host=*/1, unit, request);        // all of what host 1 owns of the unit stands there
//
// Why what is read is of one step: a rank that wants a unit for step s has seen DONE(s - 1) of all owners and
// has no STEP record of s, without which no owner changes a parameter. An answer to a rank that has one by
// then is nobody's.
//
// A unit that nobody wants leaves its memory for its next values, as long as all together are within
// JobSpec::gather.max_live: giving pages back and touching new ones takes as long as receiving what is in
// them.
//
// A successor finds what is here in the gather page, and the wants in the ranks' pages; what was on its way
// it asks for anew. Thread-safe.
#ifndef SHERD_SERVER_HOST_GATHER_H_
#define SHERD_SERVER_HOST_GATHER_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "core/gather_plan.h"
#include "runtime/job_memory.h"
#include "runtime/mutex.h"

namespace sherd::server {

class HostGather {
 public:
  // `memory` is borrowed, and has a gather page.
  HostGather(runtime::JobMemory* memory, runtime::SpinPolicy spin);
  ~HostGather();

  // The request by which the unit is wanted of other hosts; 0: it is not. Their answers name it.
  uint64_t Asked(int unit) const { return asked_[unit].load(std::memory_order_acquire); }
  bool HasArrived(int host, int unit, uint64_t request) const;
  bool Wants(int unit, uint64_t request) const { return request != 0 && Asked(unit) == request; }
  void Arrived(int host, int unit, uint64_t request);

 private:
  void Run();
  // False: the host's memory is not yet as it is going to be.
  bool Ready();
  void Pass();
  void Publish();
  void Look();
  void Free(int unit);
  absl::Status Reserve(int unit);
  // Gives back memory that units have left, what was left first first: until all is within the limit.
  void MakeRoom();
  void GiveBack();
  bool Start(const GatherPlan::Start& start);
  void CountBytes(int64_t change);
  std::atomic<uint64_t>& ArrivedAt(int host, int unit) const { return arrived_[host * units_ + unit]; }

  runtime::JobMemory* const memory_;
  const runtime::SpinPolicy spin_;
  const int units_;
  std::vector<int> ranks_;     // of this host
  std::vector<int> gathered_;  // units
  // Constant: per unit its size, what it takes here, and the hosts that own some of it.
  std::vector<int64_t> elements_, bytes_;
  std::vector<std::vector<int>> owners_;
  const std::unique_ptr<std::atomic<uint64_t>[]> asked_;    // by unit
  const std::unique_ptr<std::atomic<uint64_t>[]> arrived_;  // by host and unit: the last request
  std::atomic<bool> stop_{false};

  // Of the thread.
  std::unique_ptr<GatherPlan> plan_;
  std::vector<GatherPlan::Start> waiting_;  // for room in the machine's memory
  std::vector<GatherPlan::Rank> looked_;
  std::vector<bool> has_memory_;  // by unit: it is here or coming, or has left its memory
  std::deque<int> left_;          // units that are not here; those whose memory waits for their next values
  int64_t left_elements_ = 0;

  std::thread run_;
};

// What the peer of one connection has asked for and was not sent yet. A new connection begins with none.
class GatherRequests {
 public:
  struct Request {
    int unit = 0;
    uint64_t id = 0;
  };
  // A unit that is asked for again is sent for the last request alone.
  void Put(const Request& request);
  // False: none.
  bool Take(Request* request);

 private:
  runtime::Mutex mu_;
  std::deque<Request> requests_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_HOST_GATHER_H_
