#include "tests/sim/sim.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tests/sim/actors.h"

namespace sherd::sim {
namespace {

constexpr uint64_t kMaxEvents = 4000000;

std::vector<Operation> PlanOperations(const Job& job, Random& random) {
  std::vector<Operation> all;
  // Some runs see one boundary after another.
  const bool burst = random.Chance(25);
  const Step burst_from(random.Below(job.steps));
  for (int n = burst ? 3 + random.Below(6) : random.Below(6); n > 0; --n) {
    Operation op;
    op.kind = static_cast<Operation::Kind>(random.Below(job.elastic() ? 4 : 3));
    if (burst && random.Chance(60)) op.kind = Operation::kSnapshot;
    // Snapshots are lost with a host, and resizes are for one.
    if (job.losses > 0) op.kind = Operation::kImport;
    op.servers = 1 + random.Below(kMaxSlots);
    op.trainers = 1 + random.Below(job.places);
    op.give_up_step = random.Chance(50);
    op.from = burst ? burst_from : Step(random.Below(job.steps));
    op.after_others = random.Chance(burst ? 90 : 30);
    op.delay = random.Chance(burst ? 80 : 50) ? 0 : random.Below(500);
    op.without_trainers =
        op.kind != Operation::kSnapshot && random.Chance(op.kind == Operation::kTrainers ? 20 : 50);
    op.kill_trainers = random.Chance(60);
    all.push_back(op);
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Operation& a, const Operation& b) { return a.from < b.from; });
  return all;
}

void CheckEnd(const World& w, const Oracle& oracle) {
  w.Check(oracle.done().step.value() == static_cast<uint64_t>(w.job.steps), "not all steps were decided");
  for (const HostMemory& m : w.memory) {
    for (int b = 0; b < w.job.blocks; ++b) {
      if (!w.job.Holds(m.host, b)) continue;
      w.Check(m.planes[b] == oracle.planes()[b], "planes differ from the unsharded model");
      w.Check(m.apply_stamp[b].load() == oracle.stamps()[b] || w.replaced[m.host],
              "a block is not stamped with its last update");
    }
  }
  w.Check(oracle.decided() == w.memory[0].proposals, "not all proposals were decided");
}

std::string WhoWaits(const World& w, const Scheduler& s) {
  std::string text;
  for (const auto& [id, waits_for] : w.waits_for) {
    if (s.Alive(id)) absl::StrAppend(&text, "\n  ", s.name(id), " waits for ", waits_for());
  }
  return text;
}

}  // namespace

Result RunSeed(const Options& options) {
  Random random(Random::Mix(options.seed ^ 0xFA017));
  const Job job = Job::FromSeed(options.seed);
  Faults faults;
  faults.kills = random.Below(6);
  faults.pauses = random.Below(5);
  faults.mean_ticks = 30 << random.Below(6);
  const int quantum = 1 << random.Below(7);
  Oracle oracle(job);
  // Outlives the fibers, which the scheduler unwinds.
  std::unique_ptr<World> world;
  Scheduler scheduler(options.seed, faults, quantum);
  world = std::make_unique<World>(job, &scheduler, options.bug, options.trace);
  World& w = *world;
  w.operations = PlanOperations(job, random);
  oracle.world_of = [&w](uint64_t ranges) {
    for (const AssignmentEntry& a : w.memory[0].assignments) {
      if (a.epoch == ranges) return a.world_size;
    }
    throw Failure{"an assignment is decided that nobody has made"};
  };
  scheduler.on_fault = [&](const std::string& what) { w.Trace("*** " + what); };
  w.Trace(absl::StrCat(job.hosts, " hosts, ", job.world_size, " trainers, ", job.servers, " servers, ",
                       job.steps, " steps, ", job.blocks, " blocks in ", job.units.size(), " units, ",
                       w.operations.size(), " operations"));
  scheduler.Spawn("supervisor", false, [&] { RunSupervisor(w, oracle); });
  scheduler.Spawn("reader", false, [&] { RunReader(w, oracle); });
  scheduler.Spawn("network", false, [&] { RunNetwork(w); });
  if (job.losses > 0) scheduler.Spawn("loss", false, [&] { RunLoss(w, oracle); });
  Result result;
  result.failure = scheduler.Run([&] { return w.settled; }, kMaxEvents);
  if (!result.failure.empty()) {
    absl::StrAppend(&result.failure, WhoWaits(w, scheduler));
  } else {
    try {
      CheckEnd(w, oracle);
    } catch (const Failure& f) {
      result.failure = f.what;
    }
  }
  result.events = scheduler.now();
  result.kills = scheduler.kills();
  return result;
}

std::string ReplayCommand(const Options& options) {
  std::string text = absl::StrCat("bazel run //tests/sim -- --seed ", options.seed, " --trace");
  if (options.bug != Bug::kNone) absl::StrAppend(&text, " --bug ", BugName(options.bug));
  return text;
}

}  // namespace sherd::sim
