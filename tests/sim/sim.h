// One simulated run of a job: a layout, trainers, owners, a coordinator, a reader of snapshots; resizes,
// snapshots and imports; kills and stops between any two stores; all from one seed.
//
//   Result r = RunSeed({/*seed=*/17});
//   r.failure;   // empty: everything held
//
// What must hold: the planes and stamps at the end are the unsharded model's, bit for bit; every verdict,
// every snapshot and every look of a trainer between two steps is the model's; blobs come back; nobody waits
// for ever.
#ifndef SHERD_TESTS_SIM_SIM_H_
#define SHERD_TESTS_SIM_SIM_H_

#include <cstdint>
#include <string>

#include "tests/sim/world.h"

namespace sherd::sim {

struct Options {
  uint64_t seed = 1;
  Bug bug = Bug::kNone;
  bool trace = false;  // to stdout
};

struct Result {
  std::string failure;
  uint64_t events = 0;
  int kills = 0;
};

Result RunSeed(const Options& options);

// The command that runs this seed again.
std::string ReplayCommand(const Options& options);

}  // namespace sherd::sim

#endif  // SHERD_TESTS_SIM_SIM_H_
