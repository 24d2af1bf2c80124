// Turns the first SIGINT or SIGTERM into a call of a function, on a thread, so that a command can end in
// order and leave no half-made file; the next one, a second later or more, ends the process.
//
//   InterruptWatch interrupts;         // before other threads: they take no signals
//   interrupts.Start([&] { client.Cancel(); });
//   ...
//   if (interrupts.signal() != 0) return 128 + interrupts.signal();
#ifndef SHERD_CLIENT_CLI_INTERRUPTS_H_
#define SHERD_CLIENT_CLI_INTERRUPTS_H_

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>

#include <atomic>
#include <functional>
#include <thread>
#include <utility>

#include "runtime/unique_fd.h"

namespace sherd::cli {

class InterruptWatch {
 public:
  // REQUIRES: this process has one thread.
  InterruptWatch() : stop_(::eventfd(0, EFD_CLOEXEC)) {
    ::sigemptyset(&set_);
    ::sigaddset(&set_, SIGINT);
    ::sigaddset(&set_, SIGTERM);
    ::sigprocmask(SIG_BLOCK, &set_, nullptr);
    signals_.Reset(::signalfd(-1, &set_, SFD_CLOEXEC | SFD_NONBLOCK));
  }
  ~InterruptWatch() {
    ::eventfd_write(stop_.get(), 1);
    if (thread_.joinable()) thread_.join();
  }
  InterruptWatch(const InterruptWatch&) = delete;
  InterruptWatch& operator=(const InterruptWatch&) = delete;

  // From now on; a signal that came before is handed over now. Once only.
  void Start(std::function<void()> on_interrupt) {
    on_interrupt_ = std::move(on_interrupt);
    thread_ = std::thread([this] { Run(); });
  }

  // The signal that came, or 0. Thread-safe.
  int signal() const { return signal_.load(); }

 private:
  void Run() {
    pollfd polls[] = {{signals_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    while (::poll(polls, 2, -1) < 0) {
    }
    signalfd_siginfo info;
    if (polls[1].revents != 0 || ::read(signals_.get(), &info, sizeof(info)) != sizeof(info)) return;
    signal_.store(info.ssi_signo);
    on_interrupt_();
    // One Ctrl-C may arrive twice (`timeout` sends it to the process and to its group): no second one.
    pollfd stop = {stop_.get(), POLLIN, 0};
    if (::poll(&stop, 1, 1000) != 0) return;
    while (::read(signals_.get(), &info, sizeof(info)) > 0) {
    }
    // This thread takes the next one, which is not blocked here any more.
    ::pthread_sigmask(SIG_UNBLOCK, &set_, nullptr);
    while (::poll(&stop, 1, -1) < 0) {
    }
  }

  std::function<void()> on_interrupt_;
  sigset_t set_;
  runtime::UniqueFd signals_;
  const runtime::UniqueFd stop_;
  std::atomic<int> signal_{0};
  std::thread thread_;
};

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_INTERRUPTS_H_
