// What the kernel counts of a process and of the machine, for benchmarks. A process that has ended counts
// nothing.
#ifndef SHERD_BENCH_PROCESS_STATS_H_
#define SHERD_BENCH_PROCESS_STATS_H_

#include <sys/types.h>

#include <cstdint>

namespace sherd::bench {

// Milliseconds on cores so far, of all its threads. Unlike time by the clock, it hardly changes when other
// programs compete for the cores.
double CpuMs(pid_t pid);

// How often its threads went to sleep, waiting for something.
int64_t Sleeps(pid_t pid);

// Resident memory, pages shared with other processes counted in proportion (Pss), in bytes; and its part that
// is shared memory.
struct Pss {
  int64_t total = 0;
  int64_t shared_memory = 0;
};
Pss ReadPss(pid_t pid);

// Processes that ran or wanted to, on average over the last minute.
double LoadAverage();

}  // namespace sherd::bench

#endif  // SHERD_BENCH_PROCESS_STATS_H_
