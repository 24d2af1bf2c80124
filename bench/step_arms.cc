#include "bench/step_arms.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "bench/ddp_rank.h"
#include "bench/job_hosts.h"
#include "bench/median.h"
#include "bench/process_stats.h"
#include "bench/sherd_rank.h"
#include "runtime/secret_file.h"

namespace sherd::bench {
namespace {

enum DataParallelCommand { kLocal, kTorch, kTorchOverlapped, kFused, kFusedOverlapped };
constexpr const char* kDataParallelNames[] = {"forward + backward", "DDP, libtorch's AdamW",
                                              "DDP, libtorch's AdamW, overlapped", "DDP, fused AdamW",
                                              "DDP, fused AdamW, overlapped"};
static_assert(std::size(kDataParallelNames) == StepArms::kDataParallelArms);

double NowMs() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

template <typename Step>
void Timed(CrewMember& self, int count, const Step& step) {
  for (int i = 0; i < count; ++i) {
    const double start = NowMs();
    step();
    self.Put(NowMs() - start);
  }
}

double MedianDifference(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> d;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) d.push_back(a[i] - b[i]);
  return Median(std::move(d));
}

}  // namespace

double StepArm::best_ms() const { return ms.empty() ? 0 : *std::min_element(ms.begin(), ms.end()); }
double StepArm::BeyondMs(const StepArm& other) const { return MedianDifference(turn_ms, other.turn_ms); }
double StepArm::BeyondCpuMs(const StepArm& other) const { return MedianDifference(turn_cpu, other.turn_cpu); }

StepArms::StepArms(int world_size, std::string sherdd, const HostNetwork* hosts)
    : world_size_(world_size), sherdd_(std::move(sherdd)), hosts_(hosts) {}

StepArms::~StepArms() {
  crew_.reset();  // trainers before their servers
  for (SherdServers& servers : servers_) servers.Signal(SIGTERM);
  for (const std::string& path : rendezvous_) unlink(path.c_str());
}

std::vector<StepArm*> StepArms::AddDataParallel(const std::string& label, const StepModel& model) {
  const std::string rendezvous = absl::StrCat("/tmp/sherd-bench-", getpid(), "-", rendezvous_.size());
  rendezvous_.push_back(rendezvous);
  std::vector<int> members;
  for (int r = 0; r < world_size_; ++r) {
    members.push_back(crew_->Add(absl::StrCat(label, "data-parallel rank ", r),
                                 [=](CrewMember& self) { RunDataParallel(self, model, r, rendezvous); }));
  }
  std::vector<StepArm*> arms;
  for (int command = kLocal; command <= kFusedOverlapped; ++command) {
    arms_.push_back({absl::StrCat(label, kDataParallelNames[command]), command, members, {}, {}, {}});
    arms.push_back(&arms_.back());
  }
  return arms;
}

size_t StepArms::StartServers() {
  const std::string job = absl::StrCat("bench-", getpid(), "-", servers_.size());
  const size_t first = servers_.size();
  if (!several()) {
    servers_.emplace_back(job, world_size_, sherdd_);
    return first;
  }
  SherdServers::Host host;
  host.count = world_size_;
  host.trainers = 1;
  host.remote = hosts_->cabled();
  host.first_host = absl::StrCat(hosts_->Address(0), ":", hosts_->FreePort(0));
  host.secret_file = absl::StrCat("/tmp/sherd-", job, ".secret");
  rendezvous_.push_back(host.secret_file);
  if (const auto made = runtime::CreateSecretFile(host.secret_file); !made.ok()) {
    std::fprintf(stderr, "%s\n", made.status().ToString().c_str());
    std::_Exit(1);
  }
  for (host.index = 0; host.index < host.count; ++host.index) {
    host.address = hosts_->Address(host.index);
    hosts_->Enter(host.index);
    servers_.emplace_back(job, 1, sherdd_, host);
    hosts_->Leave();
  }
  return first;
}

StepArm* StepArms::AddSherd(const std::string& label, const StepModel& model, int stage,
                            const Stage3Options& stage3) {
  const size_t first = StartServers();
  const SherdServers& servers = servers_[first];
  StepArm arm{
      absl::StrCat(label, "Sherd, stage ", stage), 0, {}, servers.pids(), servers.job(), servers.endpoint()};
  for (int r = 0; r < world_size_; ++r) {
    const SherdServers* const mine = &servers_[several() ? first + r : first];
    if (mine != &servers) {
      for (const pid_t pid : mine->pids()) arm.servers.push_back(pid);
    }
    arm.members.push_back(crew_->Add(absl::StrCat(arm.name, " rank ", r), [=](CrewMember& self) {
      RunSherd(self, model, stage, stage3, r, *mine);
    }));
  }
  arms_.push_back(std::move(arm));
  return &arms_.back();
}

void StepArms::RunDataParallel(CrewMember& self, const StepModel& model, int rank,
                               const std::string& rendezvous) const {
  if (several()) hosts_->Enter(rank);
  DdpRank trainer(model, rank, world_size_, rendezvous, several() ? hosts_->Address(rank) : "127.0.0.1");
  self.Serve([&](int command, int count) {
    Timed(self, count, [&] {
      switch (command) {
        case kTorch:
        case kTorchOverlapped:
          return trainer.TorchStep(command == kTorchOverlapped);
        case kFused:
        case kFusedOverlapped:
          return trainer.FusedStep(command == kFusedOverlapped);
        default:
          return trainer.Local();
      }
    });
    self.Put(0);
  });
}

void StepArms::RunSherd(CrewMember& self, const StepModel& model, int stage, const Stage3Options& stage3,
                        int rank, const SherdServers& servers) const {
  std::string groups;
  if (several()) {
    hosts_->Enter(rank);
    groups = absl::StrJoin(std::vector<int>(world_size_, 1), ",");
    AwaitHosts(servers.endpoint());
  }
  SherdRank trainer(model, servers.job(), servers.endpoint(), rank, world_size_, stage, stage3, groups);
  self.Serve([&](int, int count) {
    const int64_t before = trainer.staged_bytes();
    Timed(self, count, [&] { trainer.Step(); });
    self.Put(static_cast<double>(trainer.staged_bytes() - before));
  });
}

void StepArms::Start() { crew_->Start(); }

std::vector<pid_t> StepArms::Pids(const StepArm& arm) const {
  std::vector<pid_t> pids = arm.servers;
  for (int i : arm.members) pids.push_back(crew_->pid(i));
  return pids;
}

void StepArms::Take(StepArm* arm, int steps, bool count) {
  double cpu = 0;
  int64_t sleeps = 0;
  for (pid_t pid : Pids(*arm)) cpu -= CpuMs(pid), sleeps -= Sleeps(pid);
  crew_->Run(arm->members, arm->command, steps);
  arm->steps += steps;
  for (pid_t pid : Pids(*arm)) cpu += CpuMs(pid), sleeps += Sleeps(pid);
  if (!count) {
    for (int i : arm->members) arm->first_ms = std::max(arm->first_ms, crew_->member(i).Values().front());
    return;
  }
  std::vector<double> here;
  arm->staged_bytes = 0;
  for (int i : arm->members) {
    std::vector<double> values = crew_->member(i).Values();
    arm->staged_bytes += values.back() / steps;
    here.insert(here.end(), values.begin(), values.end() - 1);
  }
  arm->ms.insert(arm->ms.end(), here.begin(), here.end());
  arm->turn_ms.push_back(Median(std::move(here)));
  arm->turn_cpu.push_back(cpu / steps);
  arm->sleeps = static_cast<double>(sleeps) / steps;
}

}  // namespace sherd::bench
