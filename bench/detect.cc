// How soon the death of a process is seen, and what it takes until a successor has its place and the next
// step is done: real sherdd processes on this host, killed with SIGKILL one after another.
//
//   bazel run -c opt //bench:detect -- [--rounds 20] [--json]
//
// Parts, from the kill on: `detected` (the coordinator tells whoever watches the cluster that the server is
// lost; of a coordinator: another server says that it is it), `restarted` (a new process has the slot),
// `step` (a step of a tiny model is done). Bounds of detection: median 50 ms, 95th percentile 250 ms.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/clock.h"
#include "tests/control/control_job.h"

namespace sherd::bench {
namespace {

constexpr double kMedianBoundMs = 50, kTailBoundMs = 250;

struct Parts {
  std::vector<double> detected, restarted, step;
};

double At(std::vector<double> values, double fraction) {
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1,
                         static_cast<size_t>(fraction * static_cast<double>(values.size())))];
}

double Since(absl::Time begun) { return absl::ToDoubleMilliseconds(runtime::SteadyNow() - begun); }

bool Is(const v1::Cluster& cluster, const std::string& id, v1::Member::State state) {
  for (const v1::Member& m : cluster.members()) {
    if (m.kind() == v1::Member::KIND_SERVER && m.id() == id && !m.slots().empty()) return m.state() == state;
  }
  return false;
}

// Watches at `from` until `seen`; tries again while the stream ends because the coordinator has.
void Watch(const tests::ControlJob& job, const std::string& from,
           const std::function<bool(const v1::Cluster&)>& seen, const std::function<void()>& begun) {
  bool told = false;
  for (;;) {
    grpc::ClientContext context;
    tests::Prepare(&context);
    v1::WatchClusterRequest request;
    const auto stub = job.Stub<v1::ClusterService>(from);
    const auto reader = stub->WatchCluster(&context, request);
    for (v1::Cluster cluster; reader->Read(&cluster);) {
      if (!told) begun();
      told = true;
      if (!seen(cluster)) continue;
      context.TryCancel();
      reader->Finish();
      return;
    }
    reader->Finish();
  }
}

void Kill(tests::ControlJob& job, bool coordinator, Parts* parts) {
  const auto settled = [](const v1::Cluster& c) {
    return !c.coordinator_id().empty() && Is(c, "s0", v1::Member::STATE_ACTIVE) &&
           Is(c, "s1", v1::Member::STATE_ACTIVE);
  };
  const std::string leader = job.WaitUntil("s0", settled).coordinator_id();
  const std::string other = leader == "s0" ? "s1" : "s0";
  const std::string victim = coordinator ? leader : other, witness = coordinator ? other : leader;
  absl::Time killed;
  Watch(
      job, witness,
      [&](const v1::Cluster& c) {
        return killed != absl::Time() &&
               (coordinator ? c.coordinator_id() == other : Is(c, victim, v1::Member::STATE_LOST));
      },
      [&] {
        killed = runtime::SteadyNow();
        job.Kill(victim);
      });
  parts->detected.push_back(Since(killed));
  const absl::Time seen = runtime::SteadyNow();
  job.StartServer(victim, 2);
  job.WaitUntil(witness, settled);
  parts->restarted.push_back(Since(seen));
  const absl::Time back = runtime::SteadyNow();
  job.Step(1);
  parts->step.push_back(Since(back));
}

int Main(int argc, char** argv) {
  int rounds = 20;
  bool json = false;
  CLI::App app("How soon a death is seen and mended.", "detect");
  app.add_option("--rounds", rounds, "Kills of each kind")->check(CLI::Range(1, 1000));
  app.add_flag("--json", json, "One JSON object on stdout");
  CLI11_PARSE(app, argc, argv);
  if (access("server/sherdd", X_OK) != 0) {
    std::fprintf(stderr,
                 "detect: there is no server/sherdd here; start it with bazel run -c opt //bench:detect\n");
    return 2;
  }
  tests::ControlJob job({"s0", "s1"});
  job.Attach();
  job.Initialise();
  job.Step(1);
  nlohmann::ordered_json out;
  bool within = true;
  for (const bool coordinator : {false, true}) {
    Parts parts;
    for (int i = 0; i < rounds; ++i) Kill(job, coordinator, &parts);
    const char* who = coordinator ? "coordinator" : "server";
    const double median = At(parts.detected, 0.5), tail = At(parts.detected, 0.95);
    within &= median <= kMedianBoundMs && tail <= kTailBoundMs;
    out[who] = {{"detected_median_ms", median},
                {"detected_p95_ms", tail},
                {"restarted_median_ms", At(parts.restarted, 0.5)},
                {"step_median_ms", At(parts.step, 0.5)}};
    if (!json) {
      std::printf(
          "%-12s detected %7.1f ms (p95 %7.1f), restarted %7.1f ms, step %7.1f ms: recovery %7.1f ms\n", who,
          median, tail, At(parts.restarted, 0.5), At(parts.step, 0.5),
          median + At(parts.restarted, 0.5) + At(parts.step, 0.5));
    }
  }
  out["within_bounds"] = within;
  if (json) std::printf("%s\n", out.dump().c_str());
  job.Detach();
  return within ? 0 : 1;
}

}  // namespace
}  // namespace sherd::bench

int main(int argc, char** argv) { return sherd::bench::Main(argc, argv); }
