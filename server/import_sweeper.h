// Removes the segments of imports on this host that have done their work or never will. Kept by the
// coordinator, and on other hosts than its own by each server.
//
//   ImportSweeper sweeper;  sweeper.Sweep(memory);      // now and then
//
// One that the coordinator proposed goes once every owner has stored it, and one that it never will when that
// is known (server/import_names.h). One that STEP records are to name goes some steps after it was first
// seen: it must be named in the step in hand or the next. One that is being filled under an UnnamedId goes
// when its process has ended.
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
