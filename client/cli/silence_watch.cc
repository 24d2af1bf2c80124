#include "client/cli/silence_watch.h"

#include <sys/eventfd.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "client/rpc/endpoints.h"
#include "runtime/clock.h"

namespace sherd::cli {
namespace {

constexpr absl::Duration kAskAgain = absl::Milliseconds(500);
constexpr absl::Duration kPatience = absl::Milliseconds(500);

// "unix:/dir/s3.sock" with prefix "s": 3. False: another's.
bool NumberOf(absl::string_view endpoint, const std::string& prefix, int* number) {
  endpoint.remove_prefix(endpoint.rfind('/') + 1);
  return absl::ConsumePrefix(&endpoint, prefix) && absl::ConsumeSuffix(&endpoint, rpc::kSocketSuffix) &&
         absl::SimpleAtoi(endpoint, number);
}

}  // namespace

SilenceWatch::SilenceWatch(std::string job_dir, std::string prefix)
    : job_dir_(std::move(job_dir)),
      prefix_(std::move(prefix)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  thread_ = std::thread([this] { Run(); });
}

SilenceWatch::~SilenceWatch() {
  {
    runtime::MutexLock lock(mu_);
    stop_ = true;
    if (asking_ != nullptr) asking_->Cancel();
    changed_.SignalAll();
  }
  thread_.join();
}

std::vector<std::pair<int, absl::Duration>> SilenceWatch::Take() {
  eventfd_t ignored;
  ::eventfd_read(wake_.get(), &ignored);
  runtime::MutexLock lock(mu_);
  return std::exchange(silent_, {});
}

void SilenceWatch::Run() {
  for (;;) {
    std::vector<std::pair<int, absl::Duration>> silent = AskAll();
    runtime::MutexLock lock(mu_);
    if (stop_) return;
    silent_ = std::move(silent);
    if (!silent_.empty()) ::eventfd_write(wake_.get(), 1);
    changed_.WaitFor(mu_, kAskAgain);
    if (stop_) return;
  }
}

std::vector<std::pair<int, absl::Duration>> SilenceWatch::AskAll() {
  std::vector<std::pair<int, absl::Duration>> silent;
  const absl::StatusOr<std::vector<std::string>> endpoints = rpc::JobEndpoints(job_dir_);
  if (!endpoints.ok()) return silent;
  std::map<std::string, Server> gone = std::exchange(servers_, {});
  for (const std::string& endpoint : *endpoints) {
    int number = 0;
    if (!NumberOf(endpoint, prefix_, &number)) continue;
    Server& server = servers_[endpoint];
    if (const auto known = gone.find(endpoint); known != gone.end()) server = std::move(known->second);
    if (server.client == nullptr) {
      server.client =
          std::make_unique<rpc::JobClient>(std::vector<std::string>{endpoint}, rpc::JobClient::Options());
    }
    const absl::Time asked = runtime::SteadyNow();
    if (Ask(&server)) {
      server.silent_since = absl::InfiniteFuture();
    } else {
      server.silent_since = std::min(server.silent_since, asked);
      silent.emplace_back(number, runtime::SteadyNow() - server.silent_since);
    }
  }
  return silent;
}

// Whatever it says: an error is an answer, too.
bool SilenceWatch::Ask(Server* server) {
  {
    runtime::MutexLock lock(mu_);
    if (stop_) return true;
    asking_ = server->client.get();
  }
  const absl::Status answer = server->client->GetCapabilities({}, runtime::SteadyNow() + kPatience).status();
  runtime::MutexLock lock(mu_);
  asking_ = nullptr;
  return !absl::IsDeadlineExceeded(answer) && !absl::IsUnavailable(answer);
}

}  // namespace sherd::cli
