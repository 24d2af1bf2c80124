// How long the coordinator's mind takes, without its hands: an event of a job of 100,000 members
// (core/membership.h), and the plan of a resize of 10,000 units from 1,024 to 1,000 owners.
//
//   bazel run -c opt //bench:coordinator -- [--members 100000] [--units 10000] [--json]
//
// Half of the members are trainers, 4,096 at most; 65,536 at most are servers with slots, the others spares,
// which join one by one. Each kind of event comes to a place that it has not come to before; what counts is
// the worst, beside the mean and the time that copying the epoch document takes, which every commit needs.
// "plan" makes the plan, "plan_walked" also visits each of its moves. Processor time. The bounds are 10 ms an
// event and 1 s a plan. Told beside them: the one event that makes the first epoch of all those
// servers at once.
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
  doc.owning_servers = doc.desired_servers = std::min(members - doc.world_size, kMaxServers);
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
  int members = 100000, units = 10000, events = 50;
  bool json = false;
  CLI::App app("The coordinator's decisions and plans, without I/O.", "coordinator");
  app.add_option("--members", members, "Servers and trainers")->check(CLI::Range(4, 2 * kMaxServers));
  app.add_option("--units", units, "Of the layout that is planned")->check(CLI::Range(1, 1000000));
  app.add_option("--events", events, "Of each kind")->check(CLI::Range(1, 1000));
  app.add_flag("--json", json, "One JSON object on stdout");
  CLI11_PARSE(app, argc, argv);

  const EpochDoc doc = Document(members);
  const int servers = static_cast<int>(doc.servers.size()), trainers = doc.world_size;
  const int spares = members - servers - trainers;
  events = std::min(events, std::min(servers, trainers) / 2);
  absl::StatusOr<MembershipState> state = MembershipState::Restore(doc);
  if (!state.ok()) {
    std::fprintf(stderr, "coordinator: %s\n", state.status().ToString().c_str());
    return 1;
  }
  const absl::Time now = absl::UnixEpoch();
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
  if (spares > 0) {
    report("spare_joins", Measure(spares, [&](int i) { apply(joins(servers + i, 0)); }), kEventBound);
  }
  EpochDoc copy;
  report("document_copy", Measure(events, [&](int) { copy = doc; }), absl::InfiniteDuration());
  report("described", Measure(events, [&](int) { effects += state->Describe(now).size(); }), kEventBound);
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
  report("server_leaves",
         Measure(events,
                 [&](int i) {
                   apply(ServerLeft{Id(server(i)), Process(server(i), 1), "leave"});
                 }),
         kEventBound);
  report("resize_begins",
         Measure(1,
                 [&](int) {
                   apply(ResizeRequested{servers - 1, "resize"});
                 }),
         kEventBound);

  absl::StatusOr<MembershipState> fresh = MembershipState::Create({"bench", servers, trainers, 1});
  if (!fresh.ok()) return 1;
  const auto joins_fresh = [&](int s) { effects += fresh->Apply(joins(s, 0), now).effects.size(); };
  report("server_joins", Measure(servers - 1, joins_fresh), kEventBound);
  report("first_epoch", Measure(1, [&](int) { joins_fresh(servers - 1); }), absl::InfiniteDuration());

  std::vector<std::vector<TensorSpec>> specs(units);
  for (int u = 0; u < units; ++u) {
    TensorSpec& tensor = specs[u].emplace_back();
    tensor.name = absl::StrCat("t", u);
    tensor.shape = {(1 << 20) + 1000 * (u % 1000)};
  }
  const absl::StatusOr<Layout> layout = Layout::Create(std::move(specs));
  if (!layout.ok()) return 1;
  int64_t moves = 0, blocks = 0, walked = 0;
  const auto plan = [&](const Layout& of) {
    absl::StatusOr<ReshardPlan> made =
        PlanReshard(Assignment::Uniform(of, kOldOwners), Assignment::Uniform(of, kNewOwners));
    if (!made.ok()) std::exit(1);
    return *std::move(made);
  };
  report("plan", Measure(3, [&](int) { moves = plan(*layout).counts().moves; }), kPlanBound);
  report("plan_walked",
         Measure(3,
                 [&](int) {
                   const ReshardPlan made = plan(*layout);
                   blocks = made.counts().blocks_moved;
                   walked = 0;
                   made.ForEachMove([&](const BlockMove& move) { walked += move.blocks.size(); });
                   if (walked != blocks) std::exit(1);
                 }),
         kPlanBound);
  out["members"] = members;
  out["units"] = units;
  out["moves"] = moves;
  out["blocks_moved"] = blocks;
  out["within_bounds"] = within;
  if (json) {
    std::printf("%s\n", out.dump().c_str());
  } else {
    std::printf("%d members, %zu effects; %d units, %lld moves of %lld blocks; %s\n", members, effects, units,
                static_cast<long long>(moves), static_cast<long long>(blocks),
                within ? "within bounds" : "OVER A BOUND");
  }
  return within ? 0 : 1;
}

}  // namespace
}  // namespace sherd::bench

int main(int argc, char** argv) { return sherd::bench::Main(argc, argv); }
