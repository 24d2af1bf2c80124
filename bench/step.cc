// What a training step costs beyond forward and backward, under Sherd and under data parallelism without
// sharding, against the memory traffic that it cannot do without. See bench/README.md.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/median.h"
#include "bench/memory_rate.h"
#include "bench/process_stats.h"
#include "bench/sherd_servers.h"
#include "bench/step_arms.h"
#include "bench/step_model.h"
#include "bench/trainer_environment.h"

namespace sherd::bench {
namespace {

constexpr int kWorld = 2;
constexpr int kCores = 2;

struct Options {
  int rounds = 9;
  int steps = 4;
  int small_steps = 300;
  int64_t memory_mib = 256;
  std::vector<int> stages = {0, 1, 2};
  bool ddp = true;
  bool json = false;
  std::string sherdd = SherdServers::DefaultProgram();
  StepModel model;
};

// Memory traffic of one step beyond forward and backward, in bytes.
struct Bytes {
  double staging, reduce, update;
  double all() const { return staging + reduce + update; }
};

Bytes BytesOf(const StepModel& model, const StepArm& arm) {
  const auto n = static_cast<double>(model.elements());
  const auto staged = static_cast<double>(SizeOf(model.precision));
  const double rounded = model.precision == DType::kFloat32 ? 0 : staged;
  // A copy reads and writes. The reduce reads every rank's gradient and writes the sum. AdamW reads
  // parameter, moments and gradient and writes the first three, and the parameter once more in 16 bits. LAMB
  // writes the gradient instead of the parameter, which a second pass moves along it.
  return {2 * arm.staged_bytes, n * (staged * kWorld + 4), n * (28 + rounded + (model.lamb ? 12 : 0))};
}

class StepBench {
 public:
  explicit StepBench(const Options& options)
      : options_(options), rate_(options.memory_mib << 18), arms_(kWorld, options.sherdd) {
    ddp_ = arms_.AddDataParallel("", options.model);
    if (!options.ddp) ddp_.resize(1);
    for (int stage : options.stages) sherd_.push_back(arms_.AddSherd("", options.model, stage));
    const StepModel small{10, 10, 4};  // 1,000 parameters
    small_local_ = arms_.AddDataParallel("1,000 parameters: ", small)[0];
    small_sherd_ = arms_.AddSherd("1,000 parameters: ", small, 1);
  }

  void Run() {
    arms_.Start();
    std::vector<StepArm*> all = ddp_;
    all.insert(all.end(), sherd_.begin(), sherd_.end());
    for (StepArm* arm : all) {
      std::fprintf(stderr, "warming up: %s\n", arm->name.c_str());
      arms_.Take(arm, 2, /*count=*/false);
    }
    for (int round = 0; round < options_.rounds; ++round) {
      for (StepArm* arm : all) arms_.Take(arm, options_.steps);
      rates_.push_back(rate_.Measure());
    }
    for (StepArm* arm : {small_local_, small_sherd_}) arms_.Take(arm, options_.small_steps, /*count=*/false);
    for (int round = 0; round < options_.rounds; ++round) {
      for (StepArm* arm : {small_local_, small_sherd_}) arms_.Take(arm, options_.small_steps);
    }
  }

  nlohmann::json Report() const {
    const StepArm& local = *ddp_.front();
    std::fprintf(stderr, "\nload %.1f; memory rate, two threads: %.1f GB/s, at its best %.1f (%s)\n",
                 LoadAverage(), Median(rates_) / 1e9, rate_.best() / 1e9, rate_.pattern().c_str());
    std::fprintf(stderr, "%-40s %9s %9s %9s %13s %18s\n", "ms a step", "first", "median", "best",
                 "beyond local", "on cores, beyond");
    nlohmann::json out = {{"load", LoadAverage()},
                          {"gb_per_s", Median(rates_) / 1e9},
                          {"best_gb_per_s", rate_.best() / 1e9},
                          {"local_ms", Median(local.ms)},
                          {"elements", options_.model.elements()}};
    for (const StepArm* arm : ddp_) Line(*arm, local, &out);
    for (const StepArm* arm : sherd_) Line(*arm, local, &out);
    // Against whichever form of data parallelism is fastest here.
    double ddp = 0, ddp_cpu = 0;
    for (size_t i = 1; i < ddp_.size(); ++i) {
      const double ms = ddp_[i]->BeyondMs(local), cpu = ddp_[i]->BeyondCpuMs(local) / kCores;
      ddp = i == 1 ? ms : std::min(ddp, ms);
      ddp_cpu = i == 1 ? cpu : std::min(ddp_cpu, cpu);
    }
    std::fprintf(stderr, "\n%-6s %28s %9s %9s %8s %9s %8s\n", "stage", "MB: staging + reduce + update",
                 "bound ms", "overhead", "x bound", "DDP", "x less");
    for (size_t i = 0; i < sherd_.size(); ++i) Stage(i, ddp, ddp_cpu, &out);
    Small(&out);
    return out;
  }

 private:
  static void Line(const StepArm& arm, const StepArm& local, nlohmann::json* out) {
    const double beyond = arm.BeyondMs(local), cpu = arm.BeyondCpuMs(local) / kCores;
    std::fprintf(stderr, "%-40s %9.1f %9.1f %9.1f %13.1f %18.1f\n", arm.name.c_str(), arm.first_ms,
                 Median(arm.ms), arm.best_ms(), beyond, cpu);
    (*out)["arms"].push_back({{"name", arm.name},
                              {"first_ms", arm.first_ms},
                              {"ms", Median(arm.ms)},
                              {"best_ms", arm.best_ms()},
                              {"beyond_local_ms", beyond},
                              {"beyond_local_on_cores_ms", cpu}});
  }

  void Stage(size_t i, double ddp, double ddp_cpu, nlohmann::json* out) const {
    const StepArm& arm = *sherd_[i];
    const Bytes bytes = BytesOf(options_.model, arm);
    // Against what memory gave in the same round: on a machine that others share it changes from one to the
    // next.
    std::vector<double> bounds, ratios, cpu_ratios;
    for (size_t round = 0; round < rates_.size(); ++round) {
      const StepArm& local = *ddp_.front();
      bounds.push_back(bytes.all() / rates_[round] * 1e3);
      ratios.push_back((arm.turn_ms[round] - local.turn_ms[round]) / bounds.back());
      cpu_ratios.push_back((arm.turn_cpu[round] - local.turn_cpu[round]) / kCores / bounds.back());
    }
    const double bound = Median(bounds), to_bound = Median(ratios), cpu_to_bound = Median(cpu_ratios);
    const double overhead = arm.BeyondMs(*ddp_.front());
    const double cpu = arm.BeyondCpuMs(*ddp_.front()) / kCores;
    std::fprintf(stderr, "%-6d %9.0f + %5.0f + %5.0f %9s %9.1f %9.1f %8.2f %9.1f %8.2f\n", options_.stages[i],
                 bytes.staging / 1e6, bytes.reduce / 1e6, bytes.update / 1e6, "", bound, overhead, to_bound,
                 ddp, ddp / overhead);
    std::fprintf(stderr, "%-6s %38s %9.1f %9.1f %8.2f %9.1f %8.2f\n", "", "on cores:", bound, cpu,
                 cpu_to_bound, ddp_cpu, ddp_cpu / cpu);
    (*out)["stages"].push_back({{"stage", options_.stages[i]},
                                {"overhead_ms", overhead},
                                {"bound_ms", bound},
                                {"overhead_to_bound", to_bound},
                                {"ddp_ms", ddp},
                                {"ddp_to_sherd", ddp / overhead},
                                {"bytes", bytes.all()},
                                {"bytes_staging", bytes.staging},
                                {"bytes_reduce", bytes.reduce},
                                {"bytes_update", bytes.update},
                                {"on_cores",
                                 {{"overhead_ms", cpu},
                                  {"overhead_to_bound", cpu_to_bound},
                                  {"ddp_ms", ddp_cpu},
                                  {"ddp_to_sherd", ddp_cpu / cpu}}}});
  }

  void Small(nlohmann::json* out) const {
    const double local = Median(small_local_->ms), step = Median(small_sherd_->ms);
    std::fprintf(
        stderr,
        "\n1,000 parameters: %.3f ms a step, %.3f ms forward and backward alone; %.1f sleeps a step in all "
        "processes together\n",
        step, local, small_sherd_->sleeps);
    (*out)["small"] = {{"step_ms", step}, {"local_ms", local}, {"sleeps", small_sherd_->sleeps}};
  }

  const Options options_;
  MemoryRate rate_;
  std::vector<double> rates_;  // of each round
  StepArms arms_;
  std::vector<StepArm*> ddp_, sherd_;
  StepArm *small_local_, *small_sherd_;
};

int Main(int argc, char** argv) {
  UseTrainerEnvironment(argv);
  Options options;
  bool no_ddp = false;
  CLI::App app("A training step beyond forward and backward: Sherd, DDP and what memory allows");
  app.add_flag("--json", options.json, "print one JSON object to stdout (the tables go to stderr)");
  app.add_option("--rounds", options.rounds, "turns of each arm")->check(CLI::Range(1, 1000));
  app.add_option("--steps", options.steps, "steps of a turn")->check(CLI::Range(1, 1000));
  app.add_option("--small-steps", options.small_steps, "steps of a turn with 1,000 parameters")
      ->check(CLI::Range(1, 4000));
  app.add_option("--stages", options.stages, "stages to measure")->check(CLI::Range(0, 3));
  app.add_option("--width", options.model.width, "of the 8 layers of the model")
      ->check(CLI::Range(16, 16384));
  app.add_option("--memory-mib", options.memory_mib,
                 "of each of the four arrays that memory is measured with")
      ->check(CLI::Range(1, 4096));
  std::string precision = "fp32";
  app.add_option("--precision", precision, "of parameters and gradients: fp32, or bf16 or fp16 without DDP")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
  app.add_flag("--lamb", options.model.lamb, "Sherd's arms by LAMB instead of AdamW");
  app.add_flag("--no-ddp", no_ddp, "leave out the data-parallel arms");
  app.add_option("--sherdd", options.sherdd, "the server's program");
  CLI11_PARSE(app, argc, argv);
  options.model.precision = precision == "bf16"   ? DType::kBFloat16
                            : precision == "fp16" ? DType::kFloat16
                                                  : DType::kFloat32;
  // The data-parallel arms step in fp32; forward and backward alone is there in any precision.
  options.ddp = !no_ddp && precision == "fp32";

  StepBench bench(options);
  bench.Run();
  const nlohmann::json out = bench.Report();
  if (options.json) std::printf("%s\n", out.dump(1).c_str());
  return 0;
}

}  // namespace
}  // namespace sherd::bench

int main(int argc, char** argv) { return sherd::bench::Main(argc, argv); }
