// How long the coordinator's mind takes, without its hands: an event of the largest job, 69,632 members
// (core/membership.h), and the plan of a resize of 10,000 units from 1,024 to 1,000 owners.
//
//   bazel run -c opt //bench:coordinator -- [--members 69632] [--units 10000] [--json]
//
// Half of the members are trainers, 4,096 at most, the others servers. Each kind of event comes to a place
// that it has not come to before; what counts is the worst, beside the mean and the time that copying the
// epoch document takes, which every commit needs. Processor time. The bounds are 10 ms an event and 1 s a
// plan.
#include <time.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/job_spec.h"
#include "core/membership.h"
#include "core/reshard_plan.h"

namespace sherd::bench {
namespace {

constexpr absl::Duration kEventBound = absl::Milliseconds(10);
constexpr absl::Duration kPlanBound = absl::Seconds(1);
constexpr int kOldOwners = 1024, kNewOwners = 1000;

ProcessIdentity Process(int member, int life) { return {100 + member, static_cast<uint64_t>(life + 1)}; }
std::string Id(int server) { return absl::StrCat("s", server); }

// As the newest document of a job at work has it.
EpochDoc Document(int members) {
  EpochDoc doc;
  doc.job = "bench";
  doc.epoch = Epoch(7);
  doc.reason = "made for a benchmark";
  doc.world_size = std::min(members / 2, kMaxWorldSize);
  doc.layout_hash = 1;
  doc.ranges_epoch = Epoch(1);
  doc.owning_servers = doc.desired_servers = members - doc.world_size;
  for (int s = 0; s < doc.owning_servers; ++s)
    doc.servers.push_back({Id(s), absl::StrCat("host-", s / 8, ":7000"), absl::StrCat("host-", s / 8),
                           Process(s, 0), Incarnation(1)});
  for (int r = 0; r < doc.world_size; ++r) {
    TrainerMember& t = doc.trainers.emplace_back();
    t.incarnation = Incarnation(1);
    t.process = Process(doc.owning_servers + r, 0);
    t.host = absl::StrCat("host-", r / 8);
    t.ready = true;
  }
  return doc;
}

struct Times {
  absl::Duration worst, sum;
  int count = 0;
  double MeanMs() const { return absl::ToDoubleMilliseconds(sum / std::max(1, count)); }
  double WorstMs() const { return absl::ToDoubleMilliseconds(worst); }
};

// Of this thread: what else the machine does is no decision's fault.
absl::Duration CpuTime() {
  timespec now;
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return absl::DurationFromTimespec(now);
}

Times Measure(int count, const std::function<void(int)>& once) {
  Times times;
  for (int i = 0; i < count; ++i) {
    const absl::Duration begun = CpuTime();
    once(i);
    const absl::Duration took = CpuTime() - begun;
    times.sum += took;
    times.worst = std::max(times.worst, took);
    ++times.count;
  }
  return times;
}

int Main(int argc, char** argv) {
  int members = kMaxServers + kMaxWorldSize, units = 10000, events = 50;
  bool json = false;
  CLI::App app("The coordinator's decisions and plans, without I/O.", "coordinator");
  app.add_option("--members", members, "Servers and trainers")
      ->check(CLI::Range(4, kMaxServers + kMaxWorldSize));
  app.add_option("--units", units, "Of the layout that is planned")->check(CLI::Range(1, 1000000));
  app.add_option("--events", events, "Of each kind")->check(CLI::Range(1, 1000));
  app.add_flag("--json", json, "One JSON object on stdout");
  CLI11_PARSE(app, argc, argv);

  const EpochDoc doc = Document(members);
  const int servers = static_cast<int>(doc.servers.size()), trainers = members - servers;
  events = std::min(events, std::min(servers, trainers) / 2);
  absl::StatusOr<MembershipState> state = MembershipState::Restore(doc);
  if (!state.ok()) {
    std::fprintf(stderr, "coordinator: %s\n", state.status().ToString().c_str());
    return 1;
  }
  const absl::Time now = absl::Now();
  size_t effects = 0;
  const auto apply = [&](const Event& event) { effects += state->Apply(event, now).effects.size(); };
  // Spread over all places.
  const auto server = [&](int i) { return static_cast<int>(static_cast<int64_t>(i) * servers / events); };
  const auto rank = [&](int i) { return static_cast<int>(static_cast<int64_t>(i) * trainers / events); };
  const auto joins = [&](int s, int life) {
    return ServerJoined{Id(s), "host:7000", absl::StrCat("host-", s / 8), Process(s, life),
                        absl::StrCat("join ", s)};
  };
  nlohmann::ordered_json out;
  bool within = true;
  const auto report = [&](const char* what, const Times& t, absl::Duration bound) {
    out[absl::StrCat(what, "_worst_ms")] = t.WorstMs();
    out[absl::StrCat(what, "_mean_ms")] = t.MeanMs();
    within &= t.worst <= bound;
    if (!json) std::printf("%-24s worst %9.3f ms  mean %9.3f ms\n", what, t.WorstMs(), t.MeanMs());
  };
  apply(Recovered{});
  EpochDoc copy;
  report("document_copy", Measure(events, [&](int) { copy = doc; }), absl::InfiniteDuration());
  report("server_rejoins", Measure(events, [&](int i) { apply(joins(server(i), 0)); }), kEventBound);
  report("server_dies",
         Measure(events,
                 [&](int i) {
                   apply(ServerDead{Id(server(i)), Process(server(i), 0)});
                 }),
         kEventBound);
  report("server_succeeds", Measure(events, [&](int i) { apply(joins(server(i), 1)); }), kEventBound);
  report("trainer_dies",
         Measure(events,
                 [&](int i) {
                   apply(TrainerDead{Rank(rank(i)), Process(servers + rank(i), 0)});
                 }),
         kEventBound);
  report("trainer_succeeds",
         Measure(events,
                 [&](int i) {
                   apply(TrainerAttached{Rank(rank(i)), absl::StrCat("host-", rank(i) / 8),
                                         Process(servers + rank(i), 1), doc.world_size, 1,
                                         absl::StrCat("attach ", i)});
                 }),
         kEventBound);
  report("described", Measure(events, [&](int) { effects += state->Describe(now).size(); }), kEventBound);
  report("resize_begins",
         Measure(1,
                 [&](int) {
                   apply(ResizeRequested{servers - 1, "resize"});
                 }),
         kEventBound);

  std::vector<std::vector<TensorSpec>> specs(units);
  for (int u = 0; u < units; ++u) {
    TensorSpec& tensor = specs[u].emplace_back();
    tensor.name = absl::StrCat("t", u);
    tensor.shape = {(1 << 20) + 1000 * (u % 1000)};
  }
  const absl::StatusOr<Layout> layout = Layout::Create(std::move(specs));
  if (!layout.ok()) return 1;
  size_t moves = 0;
  int64_t blocks = 0;
  const Times plan = Measure(3, [&](int) {
    const absl::StatusOr<ReshardPlan> made =
        PlanReshard(Assignment::Uniform(*layout, kOldOwners), Assignment::Uniform(*layout, kNewOwners));
    if (!made.ok()) std::exit(1);
    moves = made->moves.size();
    blocks = made->blocks_moved;
  });
  report("plan", plan, kPlanBound);
  out["members"] = members;
  out["units"] = units;
  out["moves"] = moves;
  out["blocks_moved"] = blocks;
  out["within_bounds"] = within;
  if (json) {
    std::printf("%s\n", out.dump().c_str());
  } else {
    std::printf("%d members, %zu effects; %d units, %zu moves of %lld blocks; %s\n", members, effects, units,
                moves, static_cast<long long>(blocks), within ? "within bounds" : "OVER A BOUND");
  }
  return within ? 0 : 1;
}

}  // namespace
}  // namespace sherd::bench

int main(int argc, char** argv) { return sherd::bench::Main(argc, argv); }
