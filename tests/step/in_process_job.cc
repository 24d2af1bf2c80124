#include "tests/step/in_process_job.h"

#include <stdlib.h>
#include <unistd.h>

#include <cstdio>

namespace sherd::tests {
namespace {

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::fprintf(stderr, "%s\n", value.status().ToString().c_str());
    std::abort();
  }
  return *std::move(value);
}

void Must(const absl::Status& status) {
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    std::abort();
  }
}

}  // namespace

InProcessJob::InProcessJob(JobSpec spec, int servers, int workers) : workers_(workers) {
  char root[] = "/dev/shm/sherd-test-XXXXXX";
  if (mkdtemp(root) == nullptr) std::abort();
  root_ = root;
  dir_ = std::make_unique<runtime::JobDir>(Must(runtime::JobDir::Create(root_, spec.job)));
  world_size_ = spec.world_size;
  memory_ = Must(runtime::JobMemory::Create(dir_.get(), std::move(spec)));
  Must(memory_->BeginFirstAssignment(ranges_epoch_, HostMap::OneHost(servers)));
  for (int m = 0; m < servers; ++m) {
    memory_->control().servers[m].Set(runtime::Self(), 1, runtime::MemberEntry::kAttached);
    engines_.emplace_back();
    StartEngine(m);
  }
  for (int r = 0; r < memory_->spec().world_size; ++r) {
    memory_->trainer(Rank(r)).Set(runtime::Self(), 1, runtime::MemberEntry::kAttached);
  }
}

InProcessJob::~InProcessJob() {
  engines_.clear();
  memory_.reset();
  Must(dir_->RemoveOwn()) ? void() : std::abort();
  rmdir(root_.c_str());
}

void InProcessJob::StartEngine(int slot) {
  server::EngineOptions options;
  options.workers = workers_;
  options.on_error = [slot](const absl::Status& s) {
    std::fprintf(stderr, "slot %d: %s\n", slot, s.ToString().c_str());
  };
  engines_[slot] = Must(server::Engine::Start(memory_.get(), Slot(slot), options));
}

std::unique_ptr<runtime::JobMemory> InProcessJob::OpenAsTrainer() {
  return Must(runtime::JobMemory::Open(dir_.get(), memory_->spec(), runtime::JobMemory::Role::kTrainer));
}

void InProcessJob::RestartOwner(int slot) {
  engines_[slot].reset();
  StartEngine(slot);
}

void InProcessJob::AddRanks(int places) {
  Must(memory_->AddRanks(places));
  for (int r = 0; r < places; ++r) {
    runtime::MemberEntry& entry = memory_->trainer(Rank(r));
    if (entry.pid.load() == 0) entry.Set(runtime::Self(), 1, runtime::MemberEntry::kAttached);
  }
}

void InProcessJob::Await(const std::function<bool()>& ready) {
  runtime::DoorbellWord& bell = memory_->control().bell;
  for (;;) {
    const uint32_t ticket = bell.Listen();
    if (ready()) return;
    bell.Wait(ticket, absl::Milliseconds(20), runtime::SpinPolicy::None());
  }
}

void InProcessJob::Resize(int servers, int world_size, bool without_trainers) {
  ++ranges_epoch_;
  if (world_size > 0) world_size_ = world_size;
  memory_->control().PutAssignment(ranges_epoch_, HostMap::OneHost(servers), world_size_);
  for (int m = this->servers(); m < servers; ++m) {
    memory_->control().servers[m].Set(runtime::Self(), 1, runtime::MemberEntry::kAttached);
    engines_.emplace_back();
    StartEngine(m);
  }
  memory_->control().proposals.ranges.store(ranges_epoch_);
  if (without_trainers) memory_->control().boundary.ranges.store(ranges_epoch_);
  for (const auto& e : engines_) memory_->control().servers[e->slot().value()].bell.Ring();
}

}  // namespace sherd::tests
