// sim: simulated runs from the command line.
//
//   bazel run //tests/sim -- --seeds 100000 --first 1       # many; the first failures and how to replay them
//   bazel run //tests/sim -- --seed 17 --trace              # one, with what everybody does
//   ... --bug no_barrier                                    # with a planted mistake (world.h)
#include <cstdio>
#include <cstring>
#include <string>

#include "CLI/CLI.hpp"
#include "tests/sim/sim.h"

int main(int argc, char** argv) {
  CLI::App app(
      "Simulates jobs with deaths, resizes, snapshots and imports; exit status 1 if one goes wrong.");
  uint64_t seed = 0, first = 1, seeds = 1000;
  bool trace = false;
  std::string bug_name = "none";
  app.add_option("--seed", seed, "run this one seed");
  app.add_option("--first", first, "first of several seeds");
  app.add_option("--seeds", seeds, "how many seeds");
  app.add_flag("--trace", trace, "print what everybody does");
  app.add_option("--bug", bug_name, "plant a mistake");
  CLI11_PARSE(app, argc, argv);
  sherd::sim::Options options;
  options.trace = trace;
  while (sherd::sim::BugName(options.bug) != bug_name) {
    options.bug = static_cast<sherd::sim::Bug>(static_cast<int>(options.bug) + 1);
    if (options.bug == sherd::sim::Bug::kBugs) {
      std::fprintf(stderr, "sim: --bug %s is unknown; Bug in tests/sim/world.h lists them\n",
                   bug_name.c_str());
      return 2;
    }
  }
  if (seed != 0) first = seed, seeds = 1;
  uint64_t failures = 0, events = 0, kills = 0, run = 0;
  for (; run < seeds && failures < 10; ++run) {
    options.seed = first + run;
    const sherd::sim::Result r = sherd::sim::RunSeed(options);
    events += r.events;
    kills += r.kills;
    if (r.failure.empty()) continue;
    ++failures;
    std::printf("seed %llu: %s\n  %s\n", static_cast<unsigned long long>(options.seed), r.failure.c_str(),
                sherd::sim::ReplayCommand(options).c_str());
  }
  std::printf("%llu seeds, %llu events, %llu kills, %llu failures\n", static_cast<unsigned long long>(run),
              static_cast<unsigned long long>(events), static_cast<unsigned long long>(kills),
              static_cast<unsigned long long>(failures));
  return failures == 0 ? 0 : 1;
}
