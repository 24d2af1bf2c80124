// Names the parameter when a program writes to one in place, or uses one that is not there: parameters are
// mapped read-only, in stage 3 not at all while they are released, and the fault says which it was.
#ifndef SHERD_CLIENT_TORCH_STRAY_WRITE_H_
#define SHERD_CLIENT_TORCH_STRAY_WRITE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace sherd::torch {

struct GuardedRange {
  const void* begin;
  int64_t bytes;
  std::string name;
  // 0 while the range can not be read; null: it always can.
  std::shared_ptr<const std::atomic<int>> readable;
};

// From now on a store into one of the ranges, or a load from one that can not be read, prints one line to
// stderr that names it and the remedy, and then ends the process by SIGSEGV as before. Faults elsewhere go to
// whatever handler was there. Replaces the ranges given before; one set per process. Thread-safe.
void GuardAgainstStrayWrites(std::vector<GuardedRange> ranges);

}  // namespace sherd::torch

#endif  // SHERD_CLIENT_TORCH_STRAY_WRITE_H_
