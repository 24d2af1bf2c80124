// The processes of the simulated job. Each function is the body of one fiber: it ends when the process exits,
// and may be killed at any Tick. What must survive lies in World.
#ifndef SHERD_TESTS_SIM_ACTORS_H_
#define SHERD_TESTS_SIM_ACTORS_H_

#include "tests/sim/oracle.h"
#include "tests/sim/world.h"

namespace sherd::sim {

// Computes steps as `rank` until the job's last one is done, or all trainers are to leave.
// REQUIRES: whoever was this rank before is dead.
void RunTrainer(World& world, const Oracle& oracle, Rank rank);

// Owns what `slot`, on `host`, owns, for ever. REQUIRES: whoever had the slot before is dead.
void RunOwner(World& world, Oracle& oracle, int host, Slot slot);

// Keeps the mirrors of other hosts, and theirs of this one, for ever. REQUIRES: the host's agent before is
// dead.
void RunAgent(World& world, int host);

// What an owner has published, into its page on another host, store by store.
void PutPage(World& world, const OwnerRecords& copy, OwnerShared* page);

// Cuts connections now and then.
void RunNetwork(World& world);

// Now and then takes a host away with all its processes and memory, and lets another one follow it, as
// server/host_takeover does.
void RunLoss(World& world, Oracle& oracle);

// Starts the coordinator, servers and trainers, and again when they have died, as `sherd run` does.
void RunSupervisor(World& world, Oracle& oracle);

// Drives core/membership: tells it who came and who died, carries out its effects, and brings the world's
// operations about.
void RunCoordinator(World& world);

// Copies every snapshot while the job goes on, and compares it with the oracle's.
void RunReader(World& world, const Oracle& oracle);

}  // namespace sherd::sim

#endif  // SHERD_TESTS_SIM_ACTORS_H_
