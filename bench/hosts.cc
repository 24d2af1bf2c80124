// Training on two hosts of one rank each: whole steps beside data parallelism without sharding, what goes
// over the wire, how much of it is hidden behind the computation on a link that is limited, and what stage 3
// costs on one host. See bench/README.md.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <deque>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/host_network.h"
#include "bench/job_hosts.h"
#include "bench/median.h"
#include "bench/process_stats.h"
#include "bench/sherd_servers.h"
#include "bench/step_arms.h"
#include "bench/step_model.h"
#include "bench/trainer_environment.h"

namespace sherd::bench {
namespace {

constexpr int kHosts = HostNetwork::kHosts;
constexpr int kCores = 2;

struct Options {
  int rounds = 7;
  int steps = 4;
  int64_t overlap_batch = 192;
  std::vector<std::string> parts = {"step", "overlap", "one-host"};
  bool loopback = false, json = false;
  std::string sherdd = SherdServers::DefaultProgram();
  StepModel model;
  bool Has(const std::string& part) const { return std::count(parts.begin(), parts.end(), part) > 0; }
};

// Units are released after every use, so that each is gathered for forward and for backward.
Stage3Options Limits(bool prefetch) {
  Stage3Options limits;
  limits.prefetch.max_reuse_distance = 0;
  limits.persistence.tensor = 0;
  if (!prefetch) limits.prefetch.prefetch_bucket = 0;
  return limits;
}

// What an arm sends, from its making on: without the initial values.
class SentSince {
 public:
  explicit SentSince(const StepArm& arm)
      : arm_(arm), steps_(arm.steps), before_(ReadSentBytes(arm.endpoint, arm.steps)) {}
  // Payload of a host in a step.
  SentBytes OfAStep() const {
    const SentBytes now = ReadSentBytes(arm_.endpoint, arm_.steps);
    const double steps = arm_.steps - steps_;
    return {(now.gradients - before_.gradients) / steps, (now.parameters - before_.parameters) / steps,
            (now.gathered - before_.gathered) / steps};
  }

 private:
  const StepArm& arm_;
  const int steps_;
  const SentBytes before_;
};

double FormulaBytes(const StepModel& model, int stage) {
  return (stage == 3 ? 3 : 2) * 4.0 * static_cast<double>(model.elements()) * (kHosts - 1) / kHosts;
}

// Whole steps, as fast as the link goes.
nlohmann::json Steps(const Options& options, const HostNetwork& network) {
  StepArms arms(kHosts, options.sherdd, &network);
  std::vector<StepArm*> all = arms.AddDataParallel("", options.model);
  const std::vector<int> stages = {0, 2, 3};
  std::vector<StepArm*> sherd;
  for (const int stage : stages) sherd.push_back(arms.AddSherd("", options.model, stage, Limits(true)));
  all.insert(all.end(), sherd.begin(), sherd.end());
  arms.Start();
  for (StepArm* arm : all) arms.Take(arm, 2, /*count=*/false);
  std::vector<SentSince> since;
  for (const StepArm* arm : sherd) since.emplace_back(*arm);
  for (int round = 0; round < options.rounds; ++round) {
    for (StepArm* arm : all) arms.Take(arm, options.steps);
  }
  nlohmann::json out = {{"load", LoadAverage()}};
  std::fprintf(stderr, "\n%-40s %9s %9s %18s\n", "ms a step, two hosts of one rank", "median", "best",
               "on cores, of both");
  for (const StepArm* arm : all) {
    std::fprintf(stderr, "%-40s %9.1f %9.1f %18.1f\n", arm->name.c_str(), Median(arm->ms), arm->best_ms(),
                 Median(arm->turn_cpu));
    out["arms"].push_back({{"name", arm->name},
                           {"ms", Median(arm->ms)},
                           {"best_ms", arm->best_ms()},
                           {"cpu_ms", Median(arm->turn_cpu)}});
  }
  // The first arm is forward and backward alone.
  const auto faster = [](const StepArm* a, const StepArm* b) { return Median(a->ms) < Median(b->ms); };
  const auto data_parallel = all.begin() + StepArms::kDataParallelArms;
  const StepArm& best = **std::min_element(all.begin() + 1, data_parallel, faster);
  const StepArm& torch = **std::min_element(all.begin() + 1, all.begin() + 3, faster);
  std::fprintf(stderr, "\n%-6s %22s %22s %30s\n", "stage", "x of DDP (libtorch's)", "x of DDP (fused)",
               "MB sent a host and step: formula, counted");
  for (size_t i = 0; i < stages.size(); ++i) {
    const SentBytes sent = since[i].OfAStep();
    const double formula = FormulaBytes(options.model, stages[i]);
    const double to_torch = Median(sherd[i]->ms) / Median(torch.ms);
    const double to_best = Median(sherd[i]->ms) / Median(best.ms);
    std::fprintf(stderr, "%-6d %22.2f %22.2f %21.1f %19.1f\n", stages[i], to_torch, to_best, formula / 1e6,
                 sent.all() / 1e6);
    out["stages"].push_back({{"stage", stages[i]},
                             {"to_ddp_torch", to_torch},
                             {"to_ddp_best", to_best},
                             {"formula_bytes", formula},
                             {"gradient_bytes", sent.gradients},
                             {"parameter_bytes", sent.parameters},
                             {"gathered_bytes", sent.gathered},
                             {"sent_to_formula", sent.all() / formula}});
  }
  return out;
}

// An arm on a link so slow that what it sends takes half as long as the computation, and as fast as it goes.
struct Limited {
  int stage = 0;
  bool prefetch = true;
  StepArm *slow = nullptr, *fast = nullptr;  // of the same processes
  double rate = 0;                           // bytes a second, each way
  double communication_ms = 0;
  SentBytes sent;  // of a host in a step

  // Of the communication, what can go on beside work that is still to be done. Gradients: all but those of
  // the unit that backward ends with. Parameters in stage 2: all but those of the unit that is updated last,
  // and no more than there is time from the decision to the end of the step. In stage 3: all but those of the
  // unit that forward begins with.
  double HideableMs(int units, double update_ms) const {
    const double one = 1.0 / units, ms = communication_ms / sent.all();
    const double parameters = stage == 3 ? ms * sent.gathered * (1 - one / 2)
                                         : std::min(ms * sent.parameters * (1 - one), update_ms);
    return ms * sent.gradients * (1 - one) + parameters;
  }

  nlohmann::json Report(const StepArm& one_host, int units, double update_ms) const {
    // What sending and receiving takes of cores that are busy anyhow cannot be hidden on them.
    const double work = std::max(slow->BeyondCpuMs(one_host) / kCores, 0.0);
    const double exposed = slow->BeyondMs(one_host) - work;
    const double hideable = HideableMs(units, update_ms);
    const double hidden = (communication_ms - exposed) / hideable;
    const double added = slow->BeyondMs(*fast);
    std::fprintf(stderr, "%-16s %8.0f %9.1f %9.1f %9.1f %9.1f %9.1f %9.1f %9.2f %9.1f\n",
                 prefetch ? slow->name.c_str() : "  nothing ahead", rate * 8e-6, communication_ms, hideable,
                 Median(slow->ms), Median(fast->ms), work, exposed, hidden, added);
    return {{"stage", stage},
            {"prefetch", prefetch},
            {"mbit_per_s", rate * 8e-6},
            {"communication_ms", communication_ms},
            {"hideable_ms", hideable},
            {"step_ms", Median(slow->ms)},
            {"unlimited_ms", Median(fast->ms)},
            {"work_ms", work},
            {"exposed_ms", exposed},
            {"hidden_of_hideable", hidden},
            {"added_by_the_limit_ms", added}};
  }
};

nlohmann::json Overlap(const Options& options, const HostNetwork& network) {
  if (!network.limitable()) return {{"skipped", "no link that can be limited: that needs root, ip and tc"}};
  StepModel model = options.model;
  model.batch = options.overlap_batch;
  // The same step where nothing is to be sent: one host.
  StepArms here(kHosts, options.sherdd);
  StepArm* const local = here.AddDataParallel("", model)[0];
  StepArm* const one_host = here.AddSherd("one host, ", model, 2);
  here.Start();
  StepArms there(kHosts, options.sherdd, &network);
  std::vector<Limited> limited = {{2, true}, {3, true}, {3, false}};
  std::deque<StepArm> fast;
  for (Limited& l : limited) l.slow = there.AddSherd("", model, l.stage, Limits(l.prefetch));
  there.Start();
  for (StepArm* arm : {local, one_host}) here.Take(arm, 2, /*count=*/false);
  here.Take(local, options.steps);
  const double compute = Median(local->ms);
  for (Limited& l : limited) {
    there.Take(l.slow, 2, /*count=*/false);
    const SentSince since(*l.slow);
    there.Take(l.slow, options.steps, /*count=*/false);
    l.sent = since.OfAStep();
    l.communication_ms = compute / 2;
    l.rate = l.sent.all() / l.communication_ms * 1e3;
    l.fast = &fast.emplace_back(*l.slow);
  }
  for (int round = 0; round < options.rounds; ++round) {
    for (StepArm* arm : {local, one_host}) here.Take(arm, options.steps);
    for (Limited& l : limited) {
      there.Take(l.fast, options.steps);
      network.Limit(l.rate * 8);
      there.Take(l.slow, options.steps);
      network.Limit(0);
    }
  }
  nlohmann::json out = {{"load", LoadAverage()},
                        {"batch", model.batch},
                        {"local_ms", Median(local->ms)},
                        {"one_host_ms", Median(one_host->ms)}};
  std::fprintf(stderr,
               "\nbatch %lld a rank: forward and backward %.1f ms, stage 2 on one host %.1f ms a step\n"
               "%-16s %8s %9s %9s %9s %9s %9s %9s %9s %9s\n",
               static_cast<long long>(model.batch), Median(local->ms), Median(one_host->ms), "ms", "Mbit/s",
               "to send", "hideable", "step", "no limit", "work", "exposed", "hidden", "added");
  const double update = std::max(Median(one_host->ms) - Median(local->ms), 0.0);
  for (const Limited& l : limited) out["arms"].push_back(l.Report(*one_host, model.blocks, update));
  return out;
}

// On one host, where the segment is the parameters.
nlohmann::json OneHost(const Options& options) {
  StepArms arms(kHosts, options.sherdd);
  StepArm* const two = arms.AddSherd("one host, ", options.model, 2);
  StepArm* const three = arms.AddSherd("one host, ", options.model, 3, Limits(true));
  arms.Start();
  for (StepArm* arm : {two, three}) arms.Take(arm, 2, /*count=*/false);
  for (int round = 0; round < options.rounds; ++round) {
    for (StepArm* arm : {two, three}) arms.Take(arm, options.steps);
  }
  const double ratio = Median(three->ms) / Median(two->ms);
  const double cpu = Median(three->turn_cpu) / Median(two->turn_cpu);
  std::fprintf(stderr, "\none host, ms a step: stage 2 %.1f, stage 3 %.1f: x %.3f; on cores x %.3f\n",
               Median(two->ms), Median(three->ms), ratio, cpu);
  return {{"load", LoadAverage()},
          {"stage_2_ms", Median(two->ms)},
          {"stage_3_ms", Median(three->ms)},
          {"ratio", ratio},
          {"ratio_on_cores", cpu}};
}

int Main(int argc, char** argv) {
  UseTrainerEnvironment(argv);
  Options options;
  CLI::App app("Training on two hosts of one rank each, beside DDP, on a limited link, and on one host");
  app.add_flag("--json", options.json, "print one JSON object to stdout (the tables go to stderr)");
  app.add_flag("--loopback", options.loopback, "not in network namespaces, though that may be possible");
  app.add_option("--parts", options.parts, "what to measure: step, overlap, one-host")
      ->check(CLI::IsMember({"step", "overlap", "one-host"}));
  app.add_option("--rounds", options.rounds, "turns of each arm")->check(CLI::Range(1, 1000));
  app.add_option("--steps", options.steps, "steps of a turn")->check(CLI::Range(1, 1000));
  app.add_option("--width", options.model.width, "of the 8 layers of the model")
      ->check(CLI::Range(16, 16384));
  app.add_option("--overlap-batch", options.overlap_batch, "samples a rank on the limited link")
      ->check(CLI::Range(1, 65536));
  app.add_option("--sherdd", options.sherdd, "the server's program");
  CLI11_PARSE(app, argc, argv);

  const HostNetwork network(options.loopback);
  nlohmann::json out = {{"network", network.cabled() ? "veth" : "loopback"},
                        {"elements", options.model.elements()}};
  if (options.Has("step")) out["step"] = Steps(options, network);
  if (options.Has("overlap")) out["overlap"] = Overlap(options, network);
  if (options.Has("one-host")) out["one_host"] = OneHost(options);
  if (options.json) std::printf("%s\n", out.dump(1).c_str());
  return 0;
}

}  // namespace
}  // namespace sherd::bench

int main(int argc, char** argv) { return sherd::bench::Main(argc, argv); }
