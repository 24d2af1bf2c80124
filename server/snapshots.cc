#include "server/snapshots.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/convert.h"
#include "proto/status.h"
#include "runtime/clock.h"
#include "server/snapshot_reader.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

using runtime::ControlPage;
using runtime::JobMemory;
using runtime::MutexLock;
using runtime::SnapshotEntry;

// How long a host's servers may be away while its cut is awaited, and for what is let go of.
constexpr absl::Duration kOthersPatience = absl::Seconds(10);
constexpr absl::Duration kReleasePatience = absl::Seconds(1);
constexpr absl::Duration kAskAgain = absl::Milliseconds(50);

int64_t BlockBytes(uint64_t plane_mask) { return SnapshotPool::PlanesIn(plane_mask) * kBlockElements * 4; }

void RingSlots(const JobMemory& memory) {
  for (runtime::MemberEntry& m : memory.control().servers) m.bell.Ring();
  memory.RingAgent();
}

std::string WhoIsWaitedFor(JobMemory& memory) {
  const std::optional<runtime::Assignment> a = memory.control().Newest();
  for (int m = 0; a.has_value() && m < a->servers; ++m) {
    absl::StatusOr<runtime::OwnerRecords*> owner = memory.owner(Slot(m));
    if (owner.ok() && !(*owner)->WaitsFor().empty())
      return absl::StrCat("the owner of slot ", m, " waits: ", (*owner)->WaitsFor());
  }
  return "not every owner came to the end of a step";
}

SnapshotState StateOf(const SnapshotEntry& e) {
  SnapshotState s;
  s.id = e.id.load(std::memory_order_acquire);
  const uint64_t cut_plus_1 = e.cut_plus_1.load(std::memory_order_acquire);
  s.step = Step(cut_plus_1 == 0 ? 0 : cut_plus_1 - 1);
  s.plane_mask = e.plane_mask.load();
  s.pool_bytes = static_cast<int64_t>(e.pool_blocks.load()) * BlockBytes(s.plane_mask);
  s.pool_used_bytes = std::min(s.pool_bytes, static_cast<int64_t>(e.used.load()) * BlockBytes(s.plane_mask));
  s.wait_when_full = e.wait_when_full.load() != 0;
  s.overflowed = e.overflowed.load() != 0;
  s.idle_timeout = absl::Nanoseconds(e.idle_ns.load());
  return s;
}

}  // namespace

absl::Status Snapshots::MakePools(JobMemory& memory, const PoolOrder& order, absl::Time deadline) {
  if (others_ == nullptr) return OpenPool(memory, order);
  v1::OpenPoolRequest request;
  request.set_job(others_->job());
  request.set_id(order.id);
  request.set_token(order.token);
  request.set_plane_mask(order.plane_mask);
  request.set_pool_blocks(order.pool_blocks);
  request.set_on_slow_reader(order.wait_when_full ? v1::ON_SLOW_READER_WAIT : v1::ON_SLOW_READER_FAIL);
  request.set_after_step(order.after_step.value());
  ToProto(order.idle_timeout, request.mutable_idle_timeout());
  absl::Status made =
      others_->ForEach(deadline, [&](int, OtherHosts::Stub& stub, grpc::ClientContext* context) {
        v1::OpenPoolResponse response;
        return FromGrpc(stub.OpenPool(context, request, &response));
      });
  // Here last: an entry here is one that may be proposed.
  if (made.ok()) made = OpenPool(memory, order);
  if (!made.ok()) ReleaseElsewhere(order.id);
  return made;
}

absl::StatusOr<uint64_t> Snapshots::Begin(JobMemory& memory, const SnapshotOptions& options,
                                          absl::Time deadline) {
  ControlPage& control = memory.control();
  uint64_t id = FindByToken(control, options.token);
  if (id == 0) {
    id = control.proposals.snapshot.load(std::memory_order_acquire);
    for (const SnapshotEntry& e : control.snapshots) id = std::max(id, e.id.load(std::memory_order_acquire));
    ++id;
    const int64_t all = memory.layout().total_blocks();
    PoolOrder order;
    order.id = id;
    order.plane_mask = options.plane_mask;
    order.pool_blocks =
        options.pool_bytes == 0
            ? all
            : std::clamp<int64_t>(options.pool_bytes / BlockBytes(options.plane_mask), 1, all);
    order.wait_when_full = options.wait_when_full;
    order.after_step = options.after_step;
    order.idle_timeout = options.idle_timeout;
    order.token = options.token;
    if (absl::Status s = MakePools(memory, order, deadline); !s.ok()) return s;
  }
  // One that was made and not proposed: its coordinator died between the two.
  if (control.proposals.snapshot.load(std::memory_order_acquire) < id)
    control.proposals.snapshot.store(id, std::memory_order_release);
  // Between two steps one that waits for its step would only be passed over.
  if (options.after_step.value() == 0 && control.boundary.snapshot.load(std::memory_order_acquire) < id)
    control.boundary.snapshot.store(id, std::memory_order_release);
  RingSlots(memory);
  return id;
}

absl::StatusOr<SnapshotState> Snapshots::Open(JobMemory& memory, const SnapshotOptions& options,
                                              absl::Time deadline) {
  ControlPage& control = memory.control();
  if (control.initialized.load(std::memory_order_acquire) == 0) {
    return absl::FailedPreconditionError(
        "the job has no values yet: rank 0 has not written the initial ones");
  }
  if (options.after_step.value() != 0) {
    const absl::StatusOr<StepId> done = memory.DoneByAll();
    if (!done.ok()) return done.status();
    if (done->step >= options.after_step) {
      return absl::FailedPreconditionError(absl::StrCat("step ", options.after_step.value(),
                                                        " is stored already: the job stands at step ",
                                                        done->step.value()));
    }
  }
  {
    MutexLock lock(mu_);
    while (beginning_) {
      if (runtime::SteadyNow() >= deadline)
        return absl::DeadlineExceededError("another snapshot was being opened");
      begun_.WaitFor(mu_, deadline - runtime::SteadyNow());
    }
    beginning_ = true;
  }
  const absl::StatusOr<uint64_t> id = Begin(memory, options, deadline);
  {
    MutexLock lock(mu_);
    beginning_ = false;
    begun_.SignalAll();
  }
  if (!id.ok()) return id.status();
  if (options.on_proposed) options.on_proposed();
  const absl::StatusOr<Step> cut = AwaitCutEverywhere(memory, *id, options, deadline);
  const SnapshotEntry* const entry = FindSnapshot(control, *id);
  if (cut.ok() && entry != nullptr) return StateOf(*entry);
  const std::string who = WhoIsWaitedFor(memory);
  Release(memory, *id);
  if (cut.ok() || absl::IsNotFound(cut.status()))
    return absl::AbortedError(absl::StrCat("snapshot ", *id, " was released while it was being opened"));
  if (absl::IsDeadlineExceeded(cut.status()))
    return absl::DeadlineExceededError(absl::StrCat("the snapshot was not cut in time: ", who));
  return cut.status();
}

absl::StatusOr<Step> Snapshots::AwaitCutEverywhere(JobMemory& memory, uint64_t id,
                                                   const SnapshotOptions& options, absl::Time deadline) {
  std::atomic<bool> give_up{false}, failed{false};
  absl::StatusOr<Step> elsewhere = absl::UnknownError("");
  // Whoever waits there keeps it from expiring.
  std::thread others;
  if (others_ != nullptr) {
    others = std::thread([&] {
      // As below: a trainer's step may hang on it.
      const absl::Time patient = options.after_step.value() != 0
                                     ? deadline
                                     : std::min(deadline, runtime::SteadyNow() + kOthersPatience);
      elsewhere = AwaitCutElsewhere(id, deadline, patient, [&] { return !give_up.load(); });
      failed = !elsewhere.ok();
    });
  }
  const absl::StatusOr<Step> here = AwaitCut(memory, id, deadline, [&] {
    if (options.cancelled && options.cancelled())
      return absl::CancelledError("whoever wanted the snapshot has gone");
    if (failed.load()) return absl::UnavailableError("another host has not cut it");
    // A trainer's step may hang on this one: it waits. Others may ask again.
    const std::string problem = others_ == nullptr ? "" : memory.control().LinkProblem();
    const bool wait = problem.empty() || options.after_step.value() != 0;
    return wait ? absl::OkStatus() : absl::UnavailableError(problem);
  });
  if (others_ == nullptr) return here;
  give_up = !here.ok();
  others.join();
  if (failed && !absl::IsCancelled(elsewhere.status())) return elsewhere.status();
  if (here.ok() && elsewhere.ok() && *here != *elsewhere) {
    return absl::AbortedError(absl::StrCat("snapshot ", id, " was cut after step ", here->value(),
                                           " here and after step ", elsewhere->value(),
                                           " on another host: take another one"));
  }
  return here;
}

absl::StatusOr<Step> Snapshots::AwaitCutElsewhere(uint64_t id, absl::Time deadline, absl::Time patient,
                                                  const std::function<bool()>& go_on) const {
  v1::AwaitCutRequest request;
  request.set_job(others_->job());
  request.set_id(id);
  for (;;) {
    std::atomic<uint64_t> least{~uint64_t{0}}, most{0};
    const absl::Status s = others_->ForEach(
        deadline,
        [&](int, OtherHosts::Stub& stub, grpc::ClientContext* context) {
          v1::AwaitCutResponse response;
          const absl::Status cut = FromGrpc(stub.AwaitCut(context, request, &response));
          if (!cut.ok()) return cut;
          for (uint64_t was = least; response.step() < was;)
            least.compare_exchange_weak(was, response.step());
          for (uint64_t was = most; response.step() > was;) most.compare_exchange_weak(was, response.step());
          return cut;
        },
        go_on);
    if (s.ok() && least == most) return Step(least);
    if (s.ok()) return absl::AbortedError("other hosts have cut it after different steps");
    // A server that was asked has died: another one is there in a moment.
    if (!absl::IsUnavailable(s) || !go_on() || runtime::SteadyNow() >= patient) return s;
    absl::SleepFor(kAskAgain);
  }
}

void Snapshots::ReleaseElsewhere(uint64_t id) const {
  v1::ReleaseRequest request;
  request.set_job(others_->job());
  request.set_id(id);
  const absl::Status released =
      others_->ForEach(runtime::SteadyNow() + kReleasePatience,
                       [&](int, OtherHosts::Stub& stub, grpc::ClientContext* context) {
                         v1::ReleaseResponse response;
                         return FromGrpc(stub.ReleasePool(context, request, &response));
                       });
  if (!released.ok()) spdlog::debug("snapshot {} will expire elsewhere: {}", id, released.ToString());
}

void Snapshots::Release(JobMemory& memory, uint64_t id) {
  ReleasePool(memory, id);
  if (others_ != nullptr) ReleaseElsewhere(id);
}

std::vector<SnapshotState> Snapshots::List(JobMemory& memory) {
  std::vector<SnapshotState> out;
  for (const SnapshotEntry& e : memory.control().snapshots) {
    if (e.id.load(std::memory_order_acquire) != 0) out.push_back(StateOf(e));
  }
  std::sort(out.begin(), out.end(),
            [](const SnapshotState& a, const SnapshotState& b) { return a.id < b.id; });
  return out;
}

}  // namespace sherd::server
