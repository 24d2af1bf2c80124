#include "server/slot_crew.h"

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "proto/status.h"
#include "runtime/clock.h"
#include "server/link_guard.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

using runtime::MutexLock;

constexpr absl::Duration kLook = absl::Milliseconds(200);
constexpr absl::Duration kAskAgain = absl::Milliseconds(50);
// How long a host may be out of reach; and how long before the caller's deadline it is told which one is.
constexpr absl::Duration kHostPatience = absl::Seconds(10);
constexpr absl::Duration kLastWords = absl::Milliseconds(300);

}  // namespace

std::string SlotCrew::AddressOf(Slot slot, bool* exists) const {
  const v1::Cluster view = coordinator_->View();
  *exists = slot.value() < view.servers();
  for (const v1::Member& m : view.members()) {
    if (m.kind() != v1::Member::KIND_SERVER || m.state() == v1::Member::STATE_LOST) continue;
    if (std::find(m.slots().begin(), m.slots().end(), slot.value()) != m.slots().end()) return m.address();
  }
  return "";
}

absl::Status SlotCrew::CallRemote(Slot slot, int attempt, const std::string& address, const SlotWork& work,
                                  absl::Time deadline) {
  const absl::StatusOr<Node*> node = context_->node();
  if (!node.ok()) return node.status();
  grpc::ClientContext client;
  (*node)->peers().Prepare(&client, deadline);
  if (absl::Status s = Note(&client); !s.ok()) return s;
  const std::unique_ptr<SlotWork::Stub> stub = v1::CheckpointService::NewStub((*node)->peers().To(address));
  const absl::Status status = work.remote(slot, attempt, *stub, &client);
  Forget(&client);
  return status;
}

absl::Status SlotCrew::Note(grpc::ClientContext* client) {
  MutexLock lock(mu_);
  if (stopping()) return absl::CancelledError("given up");
  calls_.insert(client);
  return absl::OkStatus();
}

void SlotCrew::Forget(grpc::ClientContext* client) {
  MutexLock lock(mu_);
  calls_.erase(client);
}

absl::Status SlotCrew::CallHost(const OtherHosts& others, int host, int attempt, const SlotWork& work,
                                absl::Time deadline, bool* called) {
  grpc::ClientContext client;
  const absl::StatusOr<std::unique_ptr<SlotWork::Stub>> stub = others.Prepare(host, deadline, &client);
  if (!stub.ok()) return stub.status();
  if (absl::Status s = Note(&client); !s.ok()) return s;
  *called = true;
  LinkGuard guard(&others, host, &client);
  const absl::Status status = work.remote(Slot(host), attempt, **stub, &client);
  const std::string problem = guard.End();
  Forget(&client);
  return status.ok() || problem.empty() ? status : absl::UnavailableError(problem);
}

absl::Status SlotCrew::RunHost(const OtherHosts& others, int host, const SlotWork& work,
                               absl::Time deadline) {
  absl::Time patient = runtime::SteadyNow();
  bool away = false;
  for (int attempt = 0;;) {
    if (stopping()) return absl::CancelledError("given up");
    bool called = false;
    const absl::Time begun = runtime::SteadyNow();
    const absl::Status status = CallHost(others, host, attempt, work, deadline, &called);
    if (called) ++attempt;
    if (!absl::IsUnavailable(status)) return OtherHosts::Named(host, status);
    const absl::Time now = runtime::SteadyNow();
    // One that was at work for long has been there.
    if (!away || now - begun > kHostPatience) {
      spdlog::warn("the part of host {}: {}", host, std::string(status.message()));
      patient = now + kHostPatience;
      away = true;
    }
    if (now >= std::min(patient, deadline - kLastWords)) return OtherHosts::Named(host, status);
    absl::SleepFor(kAskAgain);
  }
}

absl::Status SlotCrew::RunSlot(Slot slot, const SlotWork& work, absl::Time deadline) {
  const absl::StatusOr<Node*> node = context_->node();
  if (!node.ok()) return node.status();
  if (const OtherHosts* others = (*node)->others(); others != nullptr) {
    const bool here = slot.value() == (*node)->options().place.index;
    return here ? work.local(slot, 0) : RunHost(*others, slot.value(), work, deadline);
  }
  for (int attempt = 0;; ++attempt) {
    if (stopping()) return absl::CancelledError("given up");
    bool exists = true;
    const std::string address = AddressOf(slot, &exists);
    // A resize has taken the slot away: nobody will come for it.
    if (!exists || address == (*node)->options().address) return work.local(slot, attempt);
    absl::Status status = absl::UnavailableError("nobody holds the slot");
    if (!address.empty()) status = CallRemote(slot, attempt, address, work, deadline);
    if (!absl::IsUnavailable(status) || runtime::SteadyNow() >= deadline) return status;
    if (stopping()) return absl::CancelledError("given up");
    spdlog::warn("the part of slot {}: {}", slot.value(), std::string(status.message()));
    if (work.stand_in) return work.local(slot, attempt + 1);
    absl::SleepFor(kAskAgain);
  }
}

absl::Status SlotCrew::Run(const SlotWork& work, absl::Time deadline) {
  std::vector<absl::Status> results(servers_);
  std::atomic<int> left{servers_};
  runtime::Mutex done_mu;
  runtime::CondVar done;
  std::vector<std::thread> threads;
  for (int m = 0; m < servers_; ++m) {
    threads.emplace_back([&, m] {
      results[m] = RunSlot(Slot(m), work, deadline);
      // One failure ends the rest: nothing comes of it any more.
      if (!results[m].ok()) stop_.store(true);
      MutexLock lock(done_mu);
      left.fetch_sub(1);
      done.SignalAll();
    });
  }
  while (left.load() > 0) {
    {
      MutexLock lock(done_mu);
      if (left.load() > 0) done.WaitFor(done_mu, kLook);
    }
    if (work.go_on && !work.go_on()) stop_.store(true);
    if (!stopping()) continue;
    MutexLock lock(mu_);
    for (grpc::ClientContext* call : calls_) call->TryCancel();
  }
  for (std::thread& t : threads) t.join();
  absl::Status first;
  for (const absl::Status& s : results) {
    // What was cancelled for another's sake says nothing.
    if (!s.ok() && (first.ok() || absl::IsCancelled(first))) first = s;
  }
  return first;
}

}  // namespace sherd::server
