// The parameters of stage 3 as a trainer sees them: every unit has an address range that never changes, whose
// memory is there only while the unit is gathered. A use of a released unit is a fault, never a stale value.
//
//   auto window = ParameterWindow::Create(memory->layout(), persistent_units, limits, SharedUnits(memory));
//   const void* at = (*window)->Address(tensor);    // for good: what a tensor views
//   (*window)->BeginPass(true);
//   (*window)->Gather(unit);  compute;  (*window)->Release(unit);      // uses nest
//   (*window)->EndPass();
//
// When units are gathered ahead and how long they stay is PrefetchPlan's; where their bytes come from is a
// UnitSource's. On one host that is SharedUnits: the job's segment is the parameters, and gathering changes
// the protection of pages that are there already. On one of several it is HostUnits (client/host_units.h),
// which has bytes of other hosts under way from Begin on and waits for them in Await.
//
// Thread-compatible: passes and backward run on one thread at a time. What `readable` returns may be
// looked at from anywhere.
#ifndef SHERD_CLIENT_PARAMETER_WINDOW_H_
#define SHERD_CLIENT_PARAMETER_WINDOW_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/layout.h"
#include "core/prefetch_plan.h"
#include "runtime/job_memory.h"

namespace sherd::client {

// Where the bytes of units come from. A unit is begun, awaited and dropped in this order, once each for each
// time that it is gathered, or begun and dropped; what is dropped may be begun again, and has the values of
// then.
class UnitSource {
 public:
  virtual ~UnitSource() = default;
  // Where the unit's blocks begin, in fp32 masters (`compute` false) or in JobSpec::compute: for good.
  // Readable between Await and Drop alone. Null if the unit has no tensor of that type.
  virtual const char* Base(int unit, bool compute) const = 0;
  // Bytes that the unit takes while it is gathered, whole pages.
  virtual int64_t Bytes(int unit) const = 0;
  // Starts to make the unit's bytes readable, without waiting. An error is told by Await too.
  virtual void Begin(int unit) = 0;
  // Until they are. UNAVAILABLE and others: they will not be, and the same again until Drop.
  virtual absl::Status Await(int unit) = 0;
  virtual void Drop(int unit) = 0;
  // Values have changed while the unit is gathered: until it has the new ones. It stays readable.
  virtual absl::Status Renew(int) { return absl::OkStatus(); }
};

// Of one host: views of the job's own parameter segments, whose pages are made inaccessible while a unit is
// dropped. `memory` is a trainer's.
absl::StatusOr<std::unique_ptr<UnitSource>> SharedUnits(std::shared_ptr<runtime::JobMemory> memory);

class ParameterWindow {
 public:
  struct Stats : PrefetchPlan::Stats {
    int64_t live_bytes = 0;  // now, persistent units included
    int64_t peak_live_bytes = 0;
  };

  // `persistent`: per unit of the layout; those are gathered here, for good.
  static absl::StatusOr<std::unique_ptr<ParameterWindow>> Create(const Layout& layout,
                                                                 const std::vector<bool>& persistent,
                                                                 const PrefetchLimits& limits,
                                                                 std::unique_ptr<UnitSource> source);

  // Of a tensor of the layout; null for an empty one.
  const void* Address(int tensor) const;
  // Above 0 while the unit is readable. Lives as long as it is held, without the window.
  std::shared_ptr<const std::atomic<int>> readable(int unit) const {
    return {readable_, &readable_.get()[unit]};
  }

  // A pass is the forward and backward of one micro-batch; `last`: values change after it. See PrefetchPlan.
  void BeginPass(bool last) { plan_.BeginPass(last); }
  void EndPass() { Drop(plan_.EndPass()); }

  // After values have changed: until units that are gathered nevertheless have the new ones.
  absl::Status Renew();

  // Until Release the unit can be read. Blocks for its bytes. On an error the unit is not gathered.
  absl::Status Gather(int unit);
  // Ends one Gather. REQUIRES: one succeeded.
  void Release(int unit) { Drop(plan_.Unuse(unit)); }

  bool InUse(int unit) const { return plan_.in_use(unit); }
  Stats stats() const;

 private:
  ParameterWindow(const Layout& layout, const std::vector<bool>& persistent, const PrefetchLimits& limits,
                  std::unique_ptr<UnitSource> source);
  void Begin(int unit);
  // Waits for what Begin began. Harmless where nothing is under way.
  absl::Status Await(int unit);
  void Drop(const std::vector<int>& units);

  const Layout layout_;
  const std::unique_ptr<UnitSource> source_;
  PrefetchPlan plan_;
  std::vector<bool> under_way_;                       // begun and not awaited
  const std::shared_ptr<std::atomic<int>> readable_;  // an array, per unit
  int64_t live_bytes_ = 0, peak_live_bytes_ = 0;
};

}  // namespace sherd::client

#endif  // SHERD_CLIENT_PARAMETER_WINDOW_H_
