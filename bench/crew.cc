#include "bench/crew.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <new>
#include <utility>

namespace sherd::bench {

void CrewMember::Serve(const std::function<void(int command, int count)>& work) {
  for (uint32_t done = 0;;) {
    const uint32_t ticket = bell.Listen();
    if (asked.load(std::memory_order_acquire) == done) {
      bell.Wait(ticket, absl::InfiniteDuration(), runtime::SpinPolicy::None());
      continue;
    }
    ++done;
    if (command == Crew::kQuit) return;
    Clear();
    work(command, argument);
    answered.store(done, std::memory_order_release);
    answer.Ring();
  }
}

Crew::~Crew() {
  for (Entry& e : members_) {
    if (e.pid <= 0) continue;
    e.shared->command = kQuit;
    e.shared->asked.fetch_add(1, std::memory_order_release);
    e.shared->bell.Ring();
  }
  for (Entry& e : members_) {
    if (e.pid > 0) waitpid(e.pid, nullptr, 0);
    munmap(e.shared, sizeof(CrewMember));
  }
}

int Crew::Add(std::string name, std::function<void(CrewMember&)> body) {
  void* p = mmap(nullptr, sizeof(CrewMember), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) {
    std::perror("mmap");
    std::exit(1);
  }
  members_.push_back({std::move(name), std::move(body), new (p) CrewMember, -1});
  return static_cast<int>(members_.size()) - 1;
}

void Crew::Start() {
  std::fflush(nullptr);
  for (Entry& e : members_) {
    e.pid = fork();
    if (e.pid < 0) {
      std::perror("fork");
      std::exit(1);
    }
    if (e.pid > 0) continue;
    // Nothing outlives a benchmark that is killed.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    e.body(*e.shared);
    std::fflush(nullptr);
    _exit(0);
  }
}

void Crew::CheckAlive(Entry& e) {
  int status = 0;
  if (waitpid(e.pid, &status, WNOHANG) != e.pid) return;
  std::fprintf(stderr, "%s ended early (%s %d)\n", e.name.c_str(), WIFSIGNALED(status) ? "signal" : "exit",
               WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
  std::_Exit(1);
}

void Crew::Run(const std::vector<int>& members, int command, int count) {
  std::vector<uint32_t> wanted;
  for (int i : members) {
    CrewMember& m = *members_[i].shared;
    m.command = command;
    m.argument = count;
    wanted.push_back(m.asked.fetch_add(1, std::memory_order_release) + 1);
  }
  for (int i : members) members_[i].shared->bell.Ring();
  for (size_t k = 0; k < members.size(); ++k) {
    CrewMember& m = *members_[members[k]].shared;
    for (;;) {
      const uint32_t ticket = m.answer.Listen();
      if (m.answered.load(std::memory_order_acquire) == wanted[k]) break;
      const auto rung = m.answer.Wait(ticket, absl::Milliseconds(200), runtime::SpinPolicy::None());
      if (rung == runtime::WaitResult::kTimeout) {
        for (Entry& e : members_) CheckAlive(e);
      }
    }
  }
}

}  // namespace sherd::bench
