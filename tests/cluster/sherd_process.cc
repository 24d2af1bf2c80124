#include "tests/cluster/sherd_process.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"

namespace sherd::tests {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(30);

}  // namespace

SherdProcess::SherdProcess(std::vector<std::string> arguments,
                           std::vector<std::pair<std::string, std::string>> environment) {
  runtime::ChildProcess::Options options;
  options.argv = {"client/cli/sherd"};
  for (std::string& argument : arguments) options.argv.push_back(std::move(argument));
  options.set_env = std::move(environment);
  options.unset_env = {"SHERD_ENDPOINT"};
  options.stdout_stream.kind = runtime::ChildProcess::Stream::Kind::kPipe;
  options.stderr_stream.kind = runtime::ChildProcess::Stream::Kind::kPipe;
  absl::StatusOr<runtime::ChildProcess> child = runtime::ChildProcess::Spawn(options);
  if (!child.ok()) {
    ADD_FAILURE() << child.status();
    return;
  }
  child_.emplace(*std::move(child));
  runtime::MutexLock lock(mu_);
  out_.fd = std::move(child_->stdout_pipe());
  err_.fd = std::move(child_->stderr_pipe());
  out_.reader = std::thread([this, fd = out_.fd.get()] { Read(fd, &SherdProcess::out_); });
  err_.reader = std::thread([this, fd = err_.fd.get()] { Read(fd, &SherdProcess::err_); });
}

SherdProcess::~SherdProcess() {
  if (child_) {
    Signal(SIGKILL);
    Wait();
  }
}

void SherdProcess::Signal(int signal) { ::kill(pid(), signal); }

void SherdProcess::Read(int fd, Stream SherdProcess::*stream) {
  char buffer[4096];
  ssize_t n;
  std::string rest;
  while ((n = ::read(fd, buffer, sizeof(buffer))) > 0) {
    runtime::MutexLock lock(mu_);
    (this->*stream).text.append(buffer, n);
    rest.append(buffer, n);
    for (size_t end; (end = rest.find('\n')) != std::string::npos; rest.erase(0, end + 1)) {
      (this->*stream).lines.push_back(rest.substr(0, end));
    }
    more_.SignalAll();
  }
  runtime::MutexLock lock(mu_);
  (this->*stream).ended = true;
  more_.SignalAll();
}

SherdProcess::Result SherdProcess::Wait() {
  Result result;
  if (!child_) return result;
  const absl::StatusOr<runtime::ExitStatus> exit = child_->Wait(runtime::SteadyNow() + 2 * kPatience);
  if (!exit.ok()) {
    ADD_FAILURE() << "sherd goes on: " << exit.status();
    Signal(SIGKILL);
  } else {
    result.status = exit->signaled ? -exit->code : exit->code;
  }
  std::thread out, err;
  {
    runtime::MutexLock lock(mu_);
    out = std::move(out_.reader);
    err = std::move(err_.reader);
  }
  if (out.joinable()) out.join();
  if (err.joinable()) err.join();
  runtime::MutexLock lock(mu_);
  result.out = out_.text;
  result.err = err_.text;
  return result;
}

template <typename Matches>
std::string SherdProcess::NextLine(Stream SherdProcess::*which, Matches matches, const std::string& what) {
  const absl::Time limit = runtime::SteadyNow() + kPatience;
  runtime::MutexLock lock(mu_);
  Stream& stream = this->*which;
  for (;;) {
    const auto found = std::find_if(stream.lines.begin(), stream.lines.end(), matches);
    if (found != stream.lines.end()) {
      const std::string line = *found;
      stream.lines.erase(found);
      return line;
    }
    if (stream.ended || runtime::SteadyNow() >= limit) {
      ADD_FAILURE() << "no line with \"" << what << "\" in:\n" << stream.text;
      return "";
    }
    more_.WaitFor(mu_, limit - runtime::SteadyNow());
  }
}

std::string SherdProcess::WaitForLine(const std::string& start) {
  return NextLine(
      &SherdProcess::out_, [&](const std::string& line) { return absl::StartsWith(line, start); }, start);
}

std::string SherdProcess::WaitForError(const std::string& part) {
  return NextLine(
      &SherdProcess::err_, [&](const std::string& line) { return absl::StrContains(line, part); }, part);
}

}  // namespace sherd::tests
