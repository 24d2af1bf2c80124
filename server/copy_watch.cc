#include "server/copy_watch.h"

#include <algorithm>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "proto/copies_text.h"
#include "runtime/clock.h"
#include "server/coordinator.h"
#include "server/node.h"
#include "server/state_copies.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

constexpr absl::Duration kLookAgain = absl::Milliseconds(100);
// Of one comparison: a host that is away is known much earlier.
constexpr absl::Duration kPatience = absl::Minutes(10);
constexpr int kMostLines = 10;

}  // namespace

CopyWatch::CopyWatch(uint64_t every, const ServiceContext* context)
    : every_(every), context_(context), thread_([this] { Run(); }) {}

CopyWatch::~CopyWatch() {
  {
    runtime::MutexLock lock(mu_);
    stop_ = true;
    changed_.SignalAll();
  }
  thread_.join();
}

CopyWatch::Found CopyWatch::last() const {
  runtime::MutexLock lock(mu_);
  return last_;
}

bool CopyWatch::stopped() const {
  runtime::MutexLock lock(mu_);
  return stop_;
}

void CopyWatch::Run() {
  for (;;) {
    {
      runtime::MutexLock lock(mu_);
      if (!stop_) changed_.WaitFor(mu_, kLookAgain);
      if (stop_ || useless_) return;
    }
    Look();
  }
}

void CopyWatch::Look() {
  const absl::StatusOr<Node*> node = context_->node();
  if (!node.ok()) return;
  const std::shared_ptr<Coordinator> coordinator = (*node)->coordinator();
  if (coordinator == nullptr) {
    next_ = 0;
    return;
  }
  const absl::StatusOr<runtime::JobMemory*> memory = context_->Memory();
  if (!memory.ok()) return;
  const absl::StatusOr<StepId> done = (*memory)->DoneByAll();
  if (!done.ok()) return;
  const uint64_t step = done->step.value();
  const uint64_t following = (step / every_ + 1) * every_;
  if (next_ == 0) next_ = following;
  if (step < next_) return;
  next_ = following;
  const absl::StatusOr<v1::CompareCopiesResponse> compared =
      CompareCopies(context_->Others(), **memory, coordinator->snapshots(), absl::StrCat("copies-", step),
                    runtime::SteadyNow() + kPatience, [&] { return !stopped() && !coordinator->stopped(); });
  if (absl::IsFailedPrecondition(compared.status())) {
    useless_ = true;
    spdlog::warn("--verify-every {}: {}", every_, std::string(compared.status().message()));
    return;
  }
  if (!compared.ok()) {
    if (!stopped()) spdlog::warn("copies of the state were not compared: {}", compared.status().ToString());
    return;
  }
  {
    runtime::MutexLock lock(mu_);
    last_ = {compared->step(), compared->differences_size()};
  }
  if (compared->differences().empty()) {
    spdlog::info("step {}: {} copies of the state are the same bits", compared->step(), compared->copies());
    return;
  }
  const int lines = std::min(kMostLines, compared->differences_size());
  for (int i = 0; i < lines; ++i)
    spdlog::error("step {}: copies of the state differ: {}", compared->step(),
                  Describe(compared->differences(i)));
  if (lines < compared->differences_size() || compared->more())
    spdlog::error("step {}: and in other places, which `sherd verify` names", compared->step());
}

}  // namespace sherd::server
