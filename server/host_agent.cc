#include "server/host_agent.h"

#include <fcntl.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/flock.h"
#include "runtime/unique_fd.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

using runtime::MutexLock;

constexpr absl::Duration kTick = absl::Milliseconds(50);
constexpr absl::Duration kReportAgain = absl::Milliseconds(500);

}  // namespace

HostAgent::HostAgent(Options options, JobHome* home)
    : options_(std::move(options)), home_(home), run_([this] { Run(); }), report_([this] { ReportAll(); }) {}

HostAgent::~HostAgent() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.SignalAll();
  }
  run_.join();
  report_.join();
}

bool HostAgent::Pause(absl::Duration duration) {
  MutexLock lock(mu_);
  if (!stop_) changed_.WaitFor(mu_, duration);
  return !stop_;
}

void HostAgent::Look(const v1::Cluster& cluster) {
  MutexLock lock(mu_);
  for (const v1::Host& h : cluster.hosts()) addresses_[h.index()] = h.data_address();
}

std::string HostAgent::AddressOf(int host) const {
  MutexLock lock(mu_);
  const auto it = addresses_.find(host);
  return it == addresses_.end() ? "" : it->second;
}

void HostAgent::Run() {
  runtime::UniqueFd role;
  do {
    if (options_.tick) options_.tick();
    const absl::StatusOr<runtime::JobMemory*> memory = home_->Memory();
    if (!memory.ok()) continue;
    // What another host hears of this one must be what the job begins with.
    if (options_.place.index > 0 && (*memory)->control().host_begun.load(std::memory_order_acquire) == 0)
      continue;
    if (!role.ok()) {
      const std::string path = absl::StrCat(home_->dir().path(), "/agent");
      role.Reset(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
    }
    if (role.ok() && runtime::Flock(role.get(), LOCK_EX | LOCK_NB) == 0) return Act(*memory);
  } while (Pause(kTick));
}

absl::StatusOr<std::unique_ptr<runtime::LinkListener>> HostAgent::Listen(runtime::LinkAdmission* admission) {
  runtime::LinkListener::Options listen;
  listen.address = options_.listen;
  listen.allow_remote = options_.allow_remote;
  listen.secret = options_.secret;
  listen.admission = admission;
  listen.on_link = [this](std::unique_ptr<runtime::Link> link) {
    const int host = static_cast<int>(link->peer().host);
    MutexLock lock(mu_);
    if (const auto it = peers_.find(host); it != peers_.end()) it->second->Take(std::move(link));
  };
  listen.on_refused = [](const runtime::LinkRefusal& r) { spdlog::warn("{}", r.words); };
  return runtime::LinkListener::Start(std::move(listen));
}

// Until the end.
void HostAgent::Act(runtime::JobMemory* memory) {
  const runtime::HostPlace& place = options_.place;
  runtime::LinkIdentity self;
  self.job_uuid = memory->spec().uuid;
  self.host = static_cast<uint32_t>(place.index);
  self.incarnation = memory->control().agent_incarnation.fetch_add(1) + 1;
  self.layout_hash = memory->layout().hash();
  runtime::LinkAdmission admission(self, static_cast<uint32_t>(place.count));
  spdlog::info("agent of host {} of {}", place.index, place.count);
  std::unique_ptr<HostGather> gather;
  if (memory->gather() != nullptr) gather = std::make_unique<HostGather>(memory, options_.spin);
  for (int h = 0; h < place.count; ++h) {
    if (h == place.index) continue;
    HostPeer::Options peer{*options_.secret, &admission, [this, h] { return AddressOf(h); }, options_.spin,
                           gather.get()};
    MutexLock lock(mu_);
    peers_[h] = std::make_unique<HostPeer>(memory, h, std::move(peer));
  }
  // Hosts with larger indices connect to this one.
  std::unique_ptr<runtime::LinkListener> listener;
  do {
    if (listener == nullptr && place.index + 1 < place.count) {
      absl::StatusOr<std::unique_ptr<runtime::LinkListener>> started = Listen(&admission);
      if (started.ok()) {
        listener = *std::move(started);
        MutexLock lock(mu_);
        data_address_ = listener->address().ToString();
        changed_.SignalAll();
      } else {
        spdlog::error("no data port: {}", started.status().ToString());
      }
    }
    if (options_.tick) options_.tick();
    MutexLock lock(mu_);
    for (const auto& peer : peers_) peer.second->Look();
    if (memory->gather() != nullptr) gathered_peak_ = memory->gather()->peak_bytes.load();
    if (const absl::StatusOr<StepId> done = memory->DoneByAll(); done.ok()) step_ = done->step.value();
  } while (Pause(kTick));
  listener.reset();
  std::map<int, std::unique_ptr<HostPeer>> peers;
  {
    MutexLock lock(mu_);
    peers.swap(peers_);
  }
  peers.clear();  // not under the lock: their threads may ask for addresses
}

void HostAgent::ReportAll() {
  do {
    v1::ReportHostRequest report;
    report.set_index(options_.place.index);
    {
      MutexLock lock(mu_);
      if (peers_.empty()) continue;
      report.set_data_address(data_address_);
      report.set_step(step_);
      report.set_gathered_peak_bytes(gathered_peak_);
      for (const auto& peer : peers_) *report.add_links() = peer.second->Report();
    }
    const absl::Status reported = options_.report(std::move(report));
    if (!reported.ok()) spdlog::debug("report: {}", reported.ToString());
  } while (Pause(kReportAgain));
}

}  // namespace sherd::server
