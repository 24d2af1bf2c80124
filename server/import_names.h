// The names of imports on this host, which several of its processes may give and take away at once.
//
//   absl::Status s = NameImportHere(memory, unnamed, id, generation);
//
// An import is named under a generation (runtime/control_page.h), which grows with each coordinator and with
// each import that one gave up: what has a smaller one than the page shows, and was not proposed by then,
// never will be. The page of another host shows a generation after all that was proposed before it, so that
// each host sees for itself what may go. One that a restore reads has a generation before it has a name, and
// goes with its coordinator.
//
// Thread-safe; blocks on other processes for as long as a rename takes.
#ifndef SHERD_SERVER_IMPORT_NAMES_H_
#define SHERD_SERVER_IMPORT_NAMES_H_

#include <cstdint>

#include "absl/status/status.h"
#include "runtime/control_page.h"
#include "runtime/job_memory.h"

namespace sherd::server {

// As NameImport in checkpoint.proto, errors included. `generation` counts for nothing where `to` is named by
// STEP records.
absl::Status NameImportHere(const runtime::JobMemory& memory, uint64_t from, uint64_t to,
                            uint64_t generation);

// A coordinator takes up the job's memory: nobody before it proposes anything any more.
void BeginGeneration(runtime::ControlPage& control);

// Those of restores that are being read. One runs at a time: they are given up.
void RemoveUnnamedRestores(const runtime::JobMemory& memory);

// Removes the import if it will certainly not be proposed. Does not block: then it is left for the next time.
void RemoveIfGivenUp(const runtime::JobMemory& memory, uint64_t id);

}  // namespace sherd::server

#endif  // SHERD_SERVER_IMPORT_NAMES_H_
