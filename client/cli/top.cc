#include "client/cli/top.h"

#include <algorithm>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/cli/inspect.h"
#include "runtime/clock.h"
#include "runtime/mutex.h"

namespace sherd::cli {
namespace {

constexpr absl::Duration kPeriod = absl::Seconds(1);
constexpr char kHome[] = "\033[H";        // to the first line
constexpr char kClearLine[] = "\033[K";   // the rest of a line
constexpr char kClearBelow[] = "\033[J";  // all lines below
constexpr char kOtherScreen[] = "\033[?1049h\033[?25l";
constexpr char kThisScreen[] = "\033[?25h\033[?1049l";

// Wakes the drawing as soon as a member, the epoch, or what is waited for changes.
class ChangeWatch {
 public:
  ChangeWatch(rpc::JobClient& client, absl::Time deadline) : client_(client), deadline_(deadline) {
    thread_ = std::thread([this] { Run(); });
  }
  // REQUIRES: the client was cancelled.
  ~ChangeWatch() { thread_.join(); }

  // Until something changed, `period` passed or the watch ended; its error, if that is more than a lost
  // server.
  absl::Status Wait(absl::Duration period) {
    const absl::Time end = runtime::SteadyNow() + period;
    runtime::MutexLock lock(mu_);
    while (!changed_ && !ended_ && runtime::SteadyNow() < end) wake_.WaitFor(mu_, end - runtime::SteadyNow());
    changed_ = false;
    return ended_.value_or(absl::OkStatus());
  }

 private:
  void Run() {
    const absl::Status status = client_.RetryUnavailable(deadline_, [&] {
      const absl::Status watched = client_.WatchCluster({}, deadline_, [&](v1::Cluster&) {
        runtime::MutexLock lock(mu_);
        changed_ = true;
        wake_.SignalAll();
        return absl::OkStatus();
      });
      return watched.ok() ? absl::UnavailableError("the watch ended") : watched;
    });
    runtime::MutexLock lock(mu_);
    ended_ = status;
    wake_.SignalAll();
  }

  rpc::JobClient& client_;
  const absl::Time deadline_;
  runtime::Mutex mu_;
  runtime::CondVar wake_;
  bool changed_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> ended_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

// Steps in a second over the last pictures.
class Rate {
 public:
  void Add(uint64_t step, absl::Time now) {
    if (last_ && step >= last_->first) {
      const double seconds = absl::ToDoubleSeconds(now - last_->second);
      if (seconds < 0.5) return;
      const double rate = (step - last_->first) / seconds;
      rate_ = rate_ ? 0.6 * *rate_ + 0.4 * rate : rate;
    }
    last_ = {step, now};
  }
  std::string Text() const { return rate_ ? absl::StrFormat("%.2f steps/s", *rate_) : "..."; }

 private:
  std::optional<std::pair<uint64_t, absl::Time>> last_;
  std::optional<double> rate_;
};

std::string Picture(const v1::Cluster& cluster, const Rate& rate) {
  return absl::StrCat("sherd top   ", absl::FormatTime("%H:%M:%S", absl::Now(), absl::LocalTimeZone()), "   ",
                      rate.Text(), "\n\n", StatusText(cluster));
}

absl::Status Draw(Context& context, ChangeWatch& watch) {
  Rate rate;
  for (;;) {
    absl::StatusOr<v1::Cluster> cluster = context.client.GetCluster({}, context.deadline);
    if (!cluster.ok()) return cluster.status();
    rate.Add(cluster->step(), runtime::SteadyNow());
    std::string picture = Picture(*cluster, rate);
    for (size_t at = 0; (at = picture.find('\n', at)) != std::string::npos; at += sizeof(kClearLine)) {
      picture.insert(at, kClearLine);
    }
    context.out << kHome << picture << kClearBelow << std::flush;
    const absl::Status status = watch.Wait(std::min(kPeriod, context.deadline - runtime::SteadyNow()));
    if (runtime::SteadyNow() >= context.deadline) return absl::OkStatus();
    if (!status.ok()) return status;
  }
}

}  // namespace

absl::Status Top(Context& context, bool terminal) {
  if (!terminal || context.json) return ShowStatus(context);
  context.out << kOtherScreen;
  absl::Status status;
  {
    ChangeWatch watch(context.client, context.deadline);
    status = Draw(context, watch);
    context.client.Cancel();
  }
  context.out << kThisScreen << std::flush;
  return status;
}

}  // namespace sherd::cli
