#include "client/cli/server_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/clock.h"
#include "runtime/formats/atomic_file.h"

namespace sherd::cli {
namespace {

constexpr size_t kKeptLines = 20;

}  // namespace

absl::StatusOr<std::unique_ptr<ServerLog>> ServerLog::Open(const std::string& path) {
  runtime::UniqueFd file;
  if (!path.empty()) {
    file.Reset(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
    if (!file.ok()) return formats::FileError(errno, "write", path);
  }
  return std::unique_ptr<ServerLog>(new ServerLog(std::move(file)));
}

void ServerLog::Begin(int streams) {
  runtime::MutexLock lock(mu_);
  open_ += streams;
}

void ServerLog::End() {
  runtime::MutexLock lock(mu_);
  --open_;
  ended_.SignalAll();
}

void ServerLog::Add(absl::string_view line) {
  // A full disk loses log lines, not the job.
  if (file_.ok()) (void)!::write(file_.get(), line.data(), line.size());
  runtime::MutexLock lock(mu_);
  lines_.emplace_back(line);
  if (lines_.size() > kKeptLines) lines_.pop_front();
}

std::vector<std::string> ServerLog::LastLines(absl::Duration limit) {
  const absl::Time end = runtime::SteadyNow() + limit;
  runtime::MutexLock lock(mu_);
  while (open_ > 0 && runtime::SteadyNow() < end) ended_.WaitFor(mu_, end - runtime::SteadyNow());
  return {lines_.begin(), lines_.end()};
}

}  // namespace sherd::cli
