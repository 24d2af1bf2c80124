#include "client/cli/output_pump.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/clock.h"

namespace sherd::cli {
namespace {

constexpr size_t kLongestLine = 64 << 10;

int PollTimeout(absl::Time deadline) {
  if (deadline == absl::InfiniteFuture()) return -1;
  const int64_t left =
      absl::ToInt64Milliseconds(absl::Ceil(deadline - runtime::SteadyNow(), absl::Milliseconds(1)));
  return static_cast<int>(std::min<int64_t>(std::max<int64_t>(left, 0), 1 << 30));
}

}  // namespace

void WriteAll(int fd, absl::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;  // nobody reads it any more
    text.remove_prefix(n);
  }
}

absl::StatusOr<std::unique_ptr<OutputPump>> OutputPump::Start() {
  runtime::UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.ok()) return absl::ErrnoToStatus(errno, "cannot make an eventfd");
  auto pump = std::unique_ptr<OutputPump>(new OutputPump(std::move(wake)));
  pump->thread_ = std::thread([p = pump.get()] { p->Run(); });
  return pump;
}

OutputPump::~OutputPump() {
  if (thread_.joinable()) Finish(absl::ZeroDuration());
}

void OutputPump::Add(runtime::UniqueFd fd, Sink sink, std::function<void()> end) {
  if (fd.ok()) ::fcntl(fd.get(), F_SETFL, ::fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
  {
    runtime::MutexLock lock(mu_);
    added_.push_back({std::move(fd), std::move(sink), std::move(end), ""});
  }
  ::eventfd_write(wake_.get(), 1);
}

void OutputPump::Finish(absl::Duration limit) {
  {
    runtime::MutexLock lock(mu_);
    finishing_ = true;
    finish_by_ = runtime::SteadyNow() + limit;
  }
  ::eventfd_write(wake_.get(), 1);
  thread_.join();
}

void OutputPump::Run() {
  std::list<Source> sources;
  for (;;) {
    absl::Time limit;
    {
      runtime::MutexLock lock(mu_);
      sources.splice(sources.end(), added_);
      limit = finish_by_;
      if (finishing_ && (sources.empty() || runtime::SteadyNow() >= limit)) break;
    }
    std::vector<pollfd> polls = {{wake_.get(), POLLIN, 0}};
    for (const Source& source : sources) polls.push_back({source.fd.get(), POLLIN, 0});
    if (::poll(polls.data(), polls.size(), PollTimeout(limit)) < 0 && errno != EINTR) break;
    eventfd_t ignored;
    ::eventfd_read(wake_.get(), &ignored);
    size_t i = 1;
    for (auto it = sources.begin(); it != sources.end(); ++i) {
      const bool ready = polls[i].revents != 0 || !it->fd.ok();
      it = ready && !Read(&*it) ? sources.erase(it) : std::next(it);
    }
  }
}

bool OutputPump::Read(Source* source) {
  char buffer[16 << 10];
  for (int rounds = 0; source->fd.ok() && rounds < 8; ++rounds) {
    const ssize_t n = ::read(source->fd.get(), buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return true;
    if (n <= 0) {
      source->fd.Reset();
      break;
    }
    source->rest.append(buffer, n);
    size_t begin = 0;
    for (size_t end; (end = source->rest.find('\n', begin)) != std::string::npos; begin = end + 1) {
      source->sink(absl::string_view(source->rest).substr(begin, end + 1 - begin));
    }
    source->rest.erase(0, begin);
    if (source->rest.size() > kLongestLine) {
      source->sink(absl::StrCat(source->rest, "\n"));
      source->rest.clear();
    }
  }
  if (source->fd.ok()) return true;
  if (!source->rest.empty()) source->sink(absl::StrCat(source->rest, "\n"));
  if (source->end) source->end();
  return false;
}

}  // namespace sherd::cli
