// Removes the segments of imports that have done their work or never will. Kept by the coordinator.
//
//   ImportSweeper sweeper;  sweeper.Sweep(memory);      // now and then
//
// One that the coordinator proposed goes once every owner has stored it. One that STEP records are to name
// goes some steps after it was first seen: it must be named in the step in hand or the next. One that was
// being filled under an UnnamedId goes when its process is not this one any more.
// Thread-compatible.
#ifndef SHERD_SERVER_IMPORT_SWEEPER_H_
#define SHERD_SERVER_IMPORT_SWEEPER_H_

#include <cstdint>
#include <map>

#include "core/types.h"
#include "runtime/job_memory.h"

namespace sherd::server {

class ImportSweeper {
 public:
  // `decided`: the last proposed import that every owner has stored; `done`: the step that every owner has
  // stored.
  void Sweep(const runtime::JobMemory& memory, uint64_t decided, Step done);

 private:
  std::map<uint64_t, Step> first_seen_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_IMPORT_SWEEPER_H_
