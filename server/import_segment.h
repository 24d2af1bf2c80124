// Values to be stored in a running job at one step boundary, all or none: segment import.<id>, made whole
// before anybody names the id.
//
// The writer:
//   absl::StatusOr<ImportSegment> import = ImportSegment::Create(memory, id, {{tensor, plane}, ...});
//   import->Values(0)[element] = ...;                        // fp32, the whole tensor; padding stays zero
// An owner, when it mutates (or, at a boundary, stores) a block:
//   if (const float* values = import->Find(plane, block)) memcpy(live, values, 1024);
//
// Finding is thread-safe. Nothing blocks but Create and Open.
#ifndef SHERD_SERVER_IMPORT_SEGMENT_H_
#define SHERD_SERVER_IMPORT_SEGMENT_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/job_memory.h"
#include "runtime/segment.h"

namespace sherd::server {

class ImportSegment {
 public:
  // Ids of imports that STEP records name have this bit; those that the coordinator proposes have not.
  static constexpr uint64_t kNamedByStep = uint64_t{1} << 63;
  // An id for an import that this process fills for as long as it takes, and that is then renamed to what is
  // proposed (or removed). Left: the process that had the id made has ended.
  static uint64_t UnnamedId();
  static uint64_t IdForStep();
  static bool IsLeftUnnamed(uint64_t id);
  static bool IsUnnamed(uint64_t id);

  // In place of a plane: the tensor's count of updates, one value, taken by Adam's bias correction.
  static constexpr int kUpdateCount = -1;

  struct Item {
    int tensor = 0;  // in Layout::tensors()
    int plane = 0;   // 0: param, 1 + i: the optimizer's plane i, or kUpdateCount
  };

  // Bytes that the segment of these items takes.
  static int64_t BytesFor(const runtime::JobMemory& memory, absl::Span<const Item> items);

  // In a job of several hosts there is room for what this host owns alone: the rest is not to be written.
  // REQUIRES: no item twice; a frozen tensor's plane is 0. RESOURCE_EXHAUSTED names the bytes needed and
  // free.
  static absl::StatusOr<ImportSegment> Create(const runtime::JobMemory& memory, uint64_t id,
                                              std::vector<Item> items);
  // NOT_FOUND when there is none (any more); DATA_LOSS if it contradicts the job.
  static absl::StatusOr<ImportSegment> Open(
      const runtime::JobMemory& memory, uint64_t id,
      runtime::Segment::Access access = runtime::Segment::Access::kReadOnly);
  // Gives a finished import another id. ALREADY_EXISTS, NOT_FOUND.
  static absl::Status Rename(const runtime::JobDir& dir, uint64_t from, uint64_t to);
  // Takes the name away once the values are stored; mappings stay. Not an error if it is gone.
  static absl::Status Remove(const runtime::JobDir& dir, uint64_t id);
  // All that there are, in no order.
  static std::vector<uint64_t> List(const runtime::JobDir& dir);

  // Under which generation of imports (runtime/control_page.h) it is going to be proposed; 0: nobody has
  // said. REQUIRES of Set: opened for writing, or created.
  uint64_t generation() const;
  void SetGeneration(uint64_t generation) const;

  // Where the writer puts the values of item `i`, in the order given to Create: numel of the tensor (1 for
  // kUpdateCount), row-major.
  absl::Span<float> Values(int i) const;

  // The 256 values for `block` of `plane`, or null if they are not to change. O(log items).
  const float* Find(int plane, int64_t block) const;
  // The same for one who fills the segment in several processes. REQUIRES: opened for writing, or created.
  float* Writable(int plane, int64_t block) const { return const_cast<float*>(Find(plane, block)); }
  // The update count to set for a tensor. O(log items).
  std::optional<uint64_t> UpdateCount(int tensor) const;

 private:
  struct Header;
  struct Entry;
  explicit ImportSegment(runtime::Segment segment) : segment_(std::move(segment)) {}
  absl::Span<Entry> sorted() const;
  float* values(const Entry& e) const;

  runtime::Segment segment_;
  std::vector<int32_t> place_;  // the writer's: where item i stands in sorted()
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_IMPORT_SEGMENT_H_
