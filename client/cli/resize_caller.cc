#include "client/cli/resize_caller.h"

#include <sys/eventfd.h>

#include <utility>
#include <vector>

#include "client/rpc/endpoints.h"
#include "runtime/clock.h"

namespace sherd::cli {
namespace {

// Another operation may be under way, and every server just restarting.
constexpr absl::Duration kPatience = absl::Minutes(1);
constexpr absl::Duration kTryAgain = absl::Milliseconds(100);

}  // namespace

ResizeCaller::ResizeCaller(std::string job_dir)
    : job_dir_(std::move(job_dir)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  thread_ = std::thread([this] { Run(); });
}

ResizeCaller::~ResizeCaller() {
  {
    runtime::MutexLock lock(mu_);
    stop_ = true;
    if (client_ != nullptr) client_->Cancel();
    changed_.SignalAll();
  }
  thread_.join();
}

void ResizeCaller::Ask(int trainers) {
  runtime::MutexLock lock(mu_);
  asked_ = trainers;
  changed_.SignalAll();
}

std::optional<absl::Status> ResizeCaller::Take() {
  eventfd_t ignored;
  ::eventfd_read(wake_.get(), &ignored);
  runtime::MutexLock lock(mu_);
  return std::exchange(answer_, std::nullopt);
}

void ResizeCaller::Run() {
  for (;;) {
    int trainers = 0;
    {
      runtime::MutexLock lock(mu_);
      while (!stop_ && asked_ == 0) changed_.Wait(mu_);
      if (stop_) return;
      trainers = std::exchange(asked_, 0);
    }
    const absl::Time limit = runtime::SteadyNow() + kPatience;
    absl::Status status = Call(trainers);
    // Not now: an operation is under way, or the servers are between two lives.
    while ((absl::IsFailedPrecondition(status) || absl::IsUnavailable(status)) &&
           runtime::SteadyNow() < limit) {
      {
        runtime::MutexLock lock(mu_);
        if (!stop_) changed_.WaitFor(mu_, kTryAgain);
        if (stop_) return;
      }
      status = Call(trainers);
    }
    {
      runtime::MutexLock lock(mu_);
      answer_ = std::move(status);
    }
    ::eventfd_write(wake_.get(), 1);
  }
}

absl::Status ResizeCaller::Call(int trainers) {
  absl::StatusOr<std::vector<std::string>> endpoints = rpc::JobEndpoints(job_dir_);
  if (!endpoints.ok()) return absl::UnavailableError(endpoints.status().message());
  rpc::JobClient client(*endpoints, {});
  {
    runtime::MutexLock lock(mu_);
    if (stop_) return absl::CancelledError("stopped");
    client_ = &client;
  }
  const absl::Time deadline = runtime::SteadyNow() + kPatience;
  absl::StatusOr<v1::Cluster> cluster = client.GetCluster({}, deadline);
  absl::Status status = cluster.status();
  if (cluster.ok()) {
    v1::ResizeRequest request;
    request.set_job(cluster->job());
    request.set_token(rpc::NewToken());
    request.set_trainers(trainers);
    request.set_give_up_step(true);
    status = client.RetryUnavailable(deadline, [&] {
      return client.Resize(request, deadline, [](v1::ResizeProgress&) { return absl::OkStatus(); });
    });
  }
  runtime::MutexLock lock(mu_);
  client_ = nullptr;
  return status;
}

}  // namespace sherd::cli
