// What /proc says of a process of this host.
//
//   absl::StatusOr<ProcessStat> stat = ReadProcessStat(pid);
//   if (IsStopped(pid, start_ticks)) ...        // SIGSTOP, or a debugger: it lives and runs no instruction
//
// Thread-safe. Never blocks.
#ifndef SHERD_RUNTIME_PROCESS_STAT_H_
#define SHERD_RUNTIME_PROCESS_STAT_H_

#include <sys/types.h>

#include <cstdint>

#include "absl/status/statusor.h"

namespace sherd::runtime {

struct ProcessStat {
  char state = 0;            // field 3 of /proc/PID/stat: R, S, D, Z, T, ...
  uint64_t start_ticks = 0;  // field 22
};

// NOT_FOUND when there is none.
absl::StatusOr<ProcessStat> ReadProcessStat(pid_t pid);

// Whether exactly this process is stopped by a signal or traced by a debugger. False if it cannot be seen.
bool IsStopped(pid_t pid, uint64_t start_ticks);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_PROCESS_STAT_H_
