// Memory of a job, by process and for the host, beside the formula of ZeRO's stages. See bench/README.md.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/crew.h"
#include "bench/process_stats.h"
#include "bench/sherd_rank.h"
#include "bench/sherd_servers.h"
#include "bench/step_model.h"
#include "bench/trainer_environment.h"

namespace sherd::bench {
namespace {

constexpr double kMiB = 1 << 20;

struct Options {
  std::vector<int> worlds = {1, 2, 4};
  std::vector<int> stages = {0, 1, 2};
  bool json = false;
  std::string sherdd = SherdServers::DefaultProgram();
  StepModel model;
};

struct Sum {
  double private_mib = 0;  // of one process, on average
  double pss_mib = 0;
};

Sum Average(const std::vector<pid_t>& pids) {
  Sum sum;
  for (pid_t pid : pids) {
    const Pss pss = ReadPss(pid);
    sum.pss_mib += static_cast<double>(pss.total) / kMiB / pids.size();
    sum.private_mib += static_cast<double>(pss.total - pss.shared_memory) / kMiB / pids.size();
  }
  return sum;
}

// Bytes a rank holds of a model of Psi fp32 parameters under AdamW: parameter, gradient, two moments, 4 Psi
// each.
double FormulaMib(const StepModel& model, int stage, int world) {
  const double plane = 4.0 * static_cast<double>(model.elements()) / kMiB;
  const double parameters = plane;
  const double gradients = stage >= 2 ? plane / world : plane;
  const double moments = stage >= 1 ? 2 * plane / world : 2 * plane;
  return parameters + gradients + moments;
}

nlohmann::json Measure(const Options& options, int stage, int world) {
  SherdServers servers(absl::StrCat("bench-memory-", getpid()), world, options.sherdd);
  Crew crew;
  std::vector<int> ranks;
  for (int r = 0; r < world; ++r) {
    ranks.push_back(crew.Add(absl::StrCat("rank ", r), [&, r](CrewMember& self) {
      SherdRank trainer(options.model, servers.job(), servers.endpoint(), r, world, stage);
      self.Serve([&](int, int count) {
        for (int i = 0; i < count; ++i) trainer.Step();
        self.Put(static_cast<double>(trainer.staging_bytes()) / kMiB);
      });
    }));
  }
  // What a trainer takes that trains nothing: program, libraries, allocator.
  const int idle = crew.Add("idle", [&](CrewMember& self) {
    SherdRank::WarmUpLibraries();
    self.Serve([](int, int) {});
  });
  crew.Start();
  crew.Run({idle}, 0, 0);
  crew.Run(ranks, 0, 3);
  std::vector<pid_t> trainers;
  for (int i : ranks) trainers.push_back(crew.pid(i));
  const Sum trainer = Average(trainers), server = Average(servers.pids());
  const double base = Average({crew.pid(idle)}).private_mib;
  const double staging = crew.member(ranks[0]).Values()[0];
  // Shared memory is one copy for the host, however many map it.
  const double shared = world * (trainer.pss_mib - trainer.private_mib + server.pss_mib - server.private_mib);
  const double host = world * (trainer.pss_mib + server.pss_mib);
  const double formula = FormulaMib(options.model, stage, world);
  std::fprintf(stderr, "%5d %3d %9.0f %9.0f %9.0f %9.0f %9.0f %9.0f %9.0f %9.0f %9.0f\n", stage, world,
               trainer.pss_mib, trainer.private_mib, base, server.pss_mib, server.private_mib, staging, host,
               shared, world * formula);
  return {{"stage", stage},
          {"world_size", world},
          {"trainer_pss_mib", trainer.pss_mib},
          {"trainer_private_mib", trainer.private_mib},
          {"idle_process_mib", base},
          {"server_pss_mib", server.pss_mib},
          {"server_private_mib", server.private_mib},
          {"staging_of_a_rank_mib", staging},
          {"host_mib", host},
          {"host_shared_memory_mib", shared},
          {"formula_of_a_rank_mib", formula},
          {"formula_of_the_host_mib", world * formula}};
}

int Main(int argc, char** argv) {
  UseTrainerEnvironment(argv);
  Options options;
  CLI::App app("Memory of a job, by process and for the host");
  app.add_flag("--json", options.json, "print one JSON object to stdout (the table goes to stderr)");
  app.add_option("--worlds", options.worlds, "numbers of ranks; as many servers")->check(CLI::Range(1, 64));
  app.add_option("--stages", options.stages, "stages to measure")->check(CLI::Range(0, 2));
  app.add_option("--width", options.model.width, "of the 8 layers of the model")
      ->check(CLI::Range(16, 16384));
  app.add_option("--sherdd", options.sherdd, "the server's program");
  CLI11_PARSE(app, argc, argv);
  nlohmann::json out = {{"elements", options.model.elements()}};
  std::fprintf(
      stderr,
      "MiB; Psi = %lld parameters, a plane of %.0f MiB\n%5s %3s %9s %9s %9s %9s %9s %9s %9s %9s %9s\n",
      static_cast<long long>(options.model.elements()),
      4.0 * static_cast<double>(options.model.elements()) / kMiB, "stage", "W", "trainer", "private", "idle",
      "server", "private", "staging", "host", "shared", "formula");
  for (int stage : options.stages) {
    for (int world : options.worlds) out["jobs"].push_back(Measure(options, stage, world));
  }
  if (options.json) std::printf("%s\n", out.dump(1).c_str());
  return 0;
}

}  // namespace
}  // namespace sherd::bench

int main(int argc, char** argv) { return sherd::bench::Main(argc, argv); }
