#include "tests/torch/small_cluster.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"

namespace sherd::tests {
namespace {

constexpr char kServer[] = "server/sherdd";  // in the test's runfiles

void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "small_cluster: %s\n", status.ToString().c_str());
  std::abort();
}

// A file without a name, for what a rank says.
int Scratch() { return ::memfd_create("rank", MFD_CLOEXEC); }

std::string ReadAndClose(int fd) {
  std::string text(static_cast<size_t>(::lseek(fd, 0, SEEK_END)), '\0');
  const ssize_t n = ::pread(fd, text.data(), text.size(), 0);
  ::close(fd);
  text.resize(n < 0 ? 0 : n);
  return text;
}

}  // namespace

SmallCluster::SmallCluster(int servers) : servers_(servers), processes_(servers) {
  absl::StatusOr<runtime::JobDir> dir =
      runtime::JobDir::Create(runtime::kDefaultShmRoot, absl::StrCat("zero-test-", ::getpid()));
  Require(dir.status());
  dir_.emplace(*std::move(dir));
  for (int i = 0; i < servers_; ++i) StartServer(i);
}

std::string SmallCluster::Address(int index) const {
  return absl::StrCat("unix:", dir_->path(), "/s", index, ".sock");
}

void SmallCluster::StartServer(int index) {
  runtime::ChildProcess::Options spawn;
  spawn.argv = {kServer,
                "--job",
                dir_->job(),
                "--job-dir",
                dir_->path(),
                "--id",
                absl::StrCat("s", index),
                "--listen",
                Address(index),
                "--expect",
                absl::StrCat(servers_)};
  absl::StatusOr<runtime::ChildProcess> child = runtime::ChildProcess::Spawn(spawn);
  Require(child.status());
  processes_[index].emplace(*std::move(child));
}

void SmallCluster::ReplaceServer(int index) {
  Require(processes_[index]->Signal(SIGKILL));
  Require(processes_[index]->Wait(absl::InfiniteFuture()).status());
  StartServer(index);
}

SmallCluster::~SmallCluster() { Stop(); }

void SmallCluster::Stop() {
  for (auto& p : processes_) EXPECT_TRUE(p->Signal(SIGTERM).ok());
  for (auto& p : processes_) {
    const absl::StatusOr<runtime::ExitStatus> end = p->Wait(runtime::SteadyNow() + absl::Seconds(20));
    ASSERT_TRUE(end.ok()) << end.status();
    EXPECT_TRUE(end->success()) << end->ToString();
  }
  const absl::StatusOr<bool> removed = dir_->RemoveOwn();
  ASSERT_TRUE(removed.ok()) << removed.status();
  EXPECT_TRUE(*removed) << "somebody still holds " << dir_->path();
}

SmallCluster::Rank SmallCluster::StartRank(int rank, int world_size, int life, const Body& body) {
  Rank r;
  r.life = life;
  r.result_fd = Scratch();
  r.errors_fd = Scratch();
  std::fflush(nullptr);
  r.pid = ::fork();
  if (r.pid != 0) return r;
  ::dup2(r.errors_fd, STDERR_FILENO);
  ::dup2(r.errors_fd, STDOUT_FILENO);
  SessionOptions options;
  std::vector<std::string> addresses;
  for (int i = 0; i < servers_; ++i) addresses.push_back(Address(i));
  options.endpoints = absl::StrJoin(addresses, ",");
  options.job = dir_->job();
  options.rank = rank;
  options.world_size = world_size;
  options.timeout = absl::Seconds(60);
  {
    auto session = Session::Connect(options);
    Require(session.status());
    std::string result;
    body(**session, life, &result);
    if (::write(r.result_fd, result.data(), result.size()) != static_cast<ssize_t>(result.size())) ::_exit(3);
  }
  std::fflush(nullptr);
  ::_exit(::testing::Test::HasFailure() ? 1 : 0);
}

std::vector<RankEnd> SmallCluster::RunRanks(int world_size, const Body& body) {
  std::vector<Rank> ranks;
  for (int r = 0; r < world_size; ++r) ranks.push_back(StartRank(r, world_size, 0, body));
  std::vector<RankEnd> ends(world_size);
  for (int left = world_size; left > 0;) {
    int status = 0;
    // Any rank's process; the servers are reaped through their own handles.
    int r = 0;
    siginfo_t who{};
    if (::waitid(P_ALL, 0, &who, WEXITED | WNOWAIT) != 0) std::abort();
    while (r < world_size && ranks[r].pid != who.si_pid) ++r;
    if (r == world_size) {
      ADD_FAILURE() << "a server ended by itself, status " << who.si_status;
      std::abort();
    }
    ::waitpid(who.si_pid, &status, 0);
    const std::string errors = ReadAndClose(ranks[r].errors_fd);
    const std::string result = ReadAndClose(ranks[r].result_fd);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) {
      ranks[r] = StartRank(r, world_size, ranks[r].life + 1, body);
      continue;
    }
    ends[r] = {WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status), result, errors};
    ranks[r].pid = -1;
    --left;
    if (ends[r].exit_code == 1) ADD_FAILURE() << "rank " << r << ":\n" << errors;
  }
  return ends;
}

}  // namespace sherd::tests
