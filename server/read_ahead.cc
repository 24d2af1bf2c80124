#include "server/read_ahead.h"

#include <utility>

namespace sherd::server {
namespace {

// One being taken while the next is made, and one for when the two sides differ in speed for a moment.
constexpr size_t kDepth = 2;

}  // namespace

ReadAhead::ReadAhead(std::function<Result()> make) : make_(std::move(make)), thread_([this] { Run(); }) {}

ReadAhead::~ReadAhead() {
  {
    runtime::MutexLock lock(mu_);
    stop_ = true;
    changed_.SignalAll();
  }
  thread_.join();
}

ReadAhead::Result ReadAhead::Next() {
  runtime::MutexLock lock(mu_);
  while (ready_.empty()) changed_.Wait(mu_);
  Result result = std::move(ready_.front());
  ready_.pop_front();
  changed_.SignalAll();
  return result;
}

void ReadAhead::Run() {
  for (;;) {
    {
      runtime::MutexLock lock(mu_);
      while (!stop_ && ready_.size() >= kDepth) changed_.Wait(mu_);
      if (stop_) return;
    }
    Result result = make_();
    const bool last = !result.ok() || !result->has_value();
    runtime::MutexLock lock(mu_);
    ready_.push_back(std::move(result));
    changed_.SignalAll();
    if (last) return;
  }
}

}  // namespace sherd::server
