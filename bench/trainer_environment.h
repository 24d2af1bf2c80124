// The environment that `sherd run` gives a trainer, for benchmarks whose own processes are trainers.
#ifndef SHERD_BENCH_TRAINER_ENVIRONMENT_H_
#define SHERD_BENCH_TRAINER_ENVIRONMENT_H_

namespace sherd::bench {

// First thing in main: sets what libraries read when they are loaded (one thread for BLAS and OpenMP; malloc
// keeps the memory of large tensors) unless it is set, and starts this program again with it.
void UseTrainerEnvironment(char** argv);

}  // namespace sherd::bench

#endif  // SHERD_BENCH_TRAINER_ENVIRONMENT_H_
