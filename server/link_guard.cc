#include "server/link_guard.h"

#include <utility>

#include "absl/time/time.h"

namespace sherd::server {
namespace {

using runtime::MutexLock;

constexpr absl::Duration kLook = absl::Milliseconds(50);

}  // namespace

LinkGuard::LinkGuard(const OtherHosts* others, int host, std::function<void()> cancel)
    : others_(others), host_(host), cancel_(std::move(cancel)) {
  if (others_ != nullptr) thread_ = std::thread([this] { Run(); });
}

std::string LinkGuard::End() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
  MutexLock lock(mu_);
  return problem_;
}

void LinkGuard::Run() {
  for (;;) {
    const std::string problem = others_->Problem(host_);
    MutexLock lock(mu_);
    if (stop_) return;
    if (!problem.empty()) {
      problem_ = problem;
      cancel_();
      return;
    }
    changed_.WaitFor(mu_, kLook);
    if (stop_) return;
  }
}

}  // namespace sherd::server
