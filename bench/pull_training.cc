// What a pull at a limited rate costs a job that trains meanwhile: steps of workload O with one under way and
// without, in turns. See bench/README.md.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/median.h"
#include "bench/process_stats.h"
#include "bench/sherd_servers.h"
#include "bench/step_arms.h"
#include "bench/step_model.h"
#include "bench/trainer_environment.h"
#include "runtime/child_process.h"
#include "runtime/clock.h"

namespace sherd::bench {
namespace {

struct Options {
  int rounds = 3;
  int steps = 24;
  bool json = false;
  std::string sherdd = SherdServers::DefaultProgram();
  std::string sherd = SherdServers::InBuildTree("client/cli/sherd");
  StepModel model;
};

double Mean(const std::vector<double>& v) {
  double sum = 0;
  for (double x : v) sum += x;
  return v.empty() ? 0 : sum / static_cast<double>(v.size());
}

// A pull that goes on until the object does; the file is dropped.
class Pull {
 public:
  Pull(const Options& options, const StepArm& arm, int64_t bytes_a_second)
      : path_(absl::StrCat("/dev/shm/sherd-bench-", getpid(), ".safetensors")) {
    runtime::ChildProcess::Options child;
    child.argv = {options.sherd, "pull", path_, "--rate", absl::StrCat(bytes_a_second)};
    child.set_env = {{"SHERD_ENDPOINT", arm.endpoint}, {"SHERD_JOB", arm.job}};
    child.stdout_stream.kind = runtime::ChildProcess::Stream::Kind::kNull;
    child.stderr_stream.kind = runtime::ChildProcess::Stream::Kind::kNull;
    absl::StatusOr<runtime::ChildProcess> started = runtime::ChildProcess::Spawn(child);
    if (!started.ok()) Fail(started.status().ToString());
    child_ = *std::move(started);
  }
  // True if it had not ended by itself.
  bool End() {
    const absl::StatusOr<runtime::ExitStatus> ended = child_->Wait(runtime::SteadyNow());
    if (ended.ok() && !ended->success()) Fail(absl::StrCat("the pull ended with ", ended->ToString()));
    child_->Signal(SIGINT).IgnoreError();
    child_->Wait(runtime::SteadyNow() + absl::Seconds(10)).status().IgnoreError();
    unlink(path_.c_str());
    return !ended.ok();
  }

 private:
  [[noreturn]] static void Fail(const std::string& why) {
    std::fprintf(stderr, "pull: %s\n", why.c_str());
    std::_Exit(1);
  }
  const std::string path_;
  std::optional<runtime::ChildProcess> child_;
};

int Main(int argc, char** argv) {
  UseTrainerEnvironment(argv);
  Options options;
  CLI::App app("Steps with a pull under way, against steps without");
  app.add_flag("--json", options.json, "print one JSON object to stdout");
  app.add_option("--rounds", options.rounds, "turns of each kind")->check(CLI::Range(1, 100));
  app.add_option("--steps", options.steps, "steps of a turn, and of a pull")->check(CLI::Range(1, 4000));
  app.add_option("--width", options.model.width, "of the 8 layers of the model")
      ->check(CLI::Range(16, 16384));
  app.add_option("--sherdd", options.sherdd, "the server's program");
  app.add_option("--sherd", options.sherd, "the program that pulls");
  CLI11_PARSE(app, argc, argv);

  StepArms arms(2, options.sherdd);
  StepArm* const arm = arms.AddSherd("", options.model, 1);
  arms.Start();
  arms.Take(arm, 3, /*count=*/false);
  arms.Take(arm, options.steps);
  // So slow that a pull outlasts the steps of a turn, with room to spare.
  const double turn_seconds = options.steps * arm->turn_ms.back() / 1e3;
  const double bytes = 4.0 * static_cast<double>(options.model.elements());
  const auto rate = static_cast<int64_t>(std::max(bytes / (2 * turn_seconds), 65536.0));
  std::vector<double> without, with, cpu_without, cpu_with;
  int lasted = 0;
  for (int round = 0; round < options.rounds; ++round) {
    for (const bool pulling : {false, true}) {
      std::optional<Pull> pull;
      if (pulling) pull.emplace(options, *arm, rate);
      arm->ms.clear();
      arms.Take(arm, options.steps);
      if (pulling) lasted += pull->End();
      (pulling ? with : without).push_back(Mean(arm->ms));
      (pulling ? cpu_with : cpu_without).push_back(arm->turn_cpu.back());
    }
  }
  const double ratio = Median(with) / Median(without), cpu = Median(cpu_with) / Median(cpu_without);
  std::fprintf(stderr,
               "load %.1f; %d of %d pulls at %.0f MB/s lasted for all of %d steps\n"
               "mean step: %.1f ms without a pull, %.1f ms with one: x %.3f; on cores x %.3f\n",
               LoadAverage(), lasted, options.rounds, static_cast<double>(rate) / 1e6, options.steps,
               Median(without), Median(with), ratio, cpu);
  const nlohmann::json out = {{"rate_mb_per_s", static_cast<double>(rate) / 1e6},
                              {"steps", options.steps},
                              {"pulls", options.rounds},
                              {"pulls_that_lasted", lasted},
                              {"step_ms", Median(without)},
                              {"step_with_pull_ms", Median(with)},
                              {"ratio", ratio},
                              {"ratio_on_cores", cpu}};
  if (options.json) std::printf("%s\n", out.dump(1).c_str());
  return 0;
}

}  // namespace
}  // namespace sherd::bench

int main(int argc, char** argv) { return sherd::bench::Main(argc, argv); }
