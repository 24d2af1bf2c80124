// How fast two hosts exchange slices, beside a plain socket and Gloo in the same run: two processes, each in
// a network namespace of its own with a cable (veth) between them, or on the loopback where there are none.
// Each sends from and receives into shared memory, both directions at once.
//
//   bazel run -c opt //bench:exchange -- [--mib 64] [--rounds 9] [--frame-kib 4096] [--loopback] [--json]
//
// Arms, in turn in every round: `plain`, blocking send() and recv() of the whole; `link`, frames over
// runtime/link.h; `gloo`, one send and one receive of Gloo's unbound buffers.
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/process_stats.h"
#include "runtime/clock.h"
#include "runtime/link.h"
#include "runtime/link_admission.h"
#include "runtime/link_listener.h"
#include "runtime/net_address.h"
#include "runtime/secret_file.h"
#include "runtime/unique_fd.h"

namespace sherd::bench {
namespace {

constexpr const char* kArms[] = {"plain", "link", "gloo"};
constexpr int kArmCount = 3;
constexpr int kMaxRounds = 100;
constexpr int kPlainPort = 4711, kLinkPort = 4712;

struct Flags {
  int64_t mib = 64;
  int rounds = 9;
  int64_t frame_kib = 4096;
  int socket_kib = 0;
  bool loopback = false;
  bool json = false;
};

// What the two processes and their parent share.
struct Board {
  std::atomic<int> unshared{0};  // processes with a network of their own
  std::atomic<int> cabled{0};    // 1: the cable is there, 2: there is none
  std::atomic<int> arrived{0};   // at barriers, in all
  std::atomic<bool> failed{false};
  double seconds[2][kArmCount][kMaxRounds];  // until a side had received all, from the barrier on
  double cpu_ms[2][kArmCount];
  int64_t wrong[2];  // bytes that came out other than they went in
};

[[noreturn]] void Die(Board* board, const std::string& why) {
  std::fprintf(stderr, "exchange: %s\n", why.c_str());
  board->failed = true;
  std::_Exit(1);
}

void WaitFor(Board* board, const std::function<bool()>& done) {
  for (int spins = 0; !done(); ++spins) {
    if (board->failed) std::_Exit(1);
    if (spins < 1000) {
      std::this_thread::yield();
    } else {
      ::usleep(50);
    }
  }
}

// Both sides leave together.
void Barrier(Board* board) {
  const int mine = board->arrived.fetch_add(1);
  const int all = (mine / 2 + 1) * 2;
  WaitFor(board, [&] { return board->arrived.load() >= all; });
}

char* Share(size_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
}

// Side 0 listens, side 1 dials.
class Side {
 public:
  Side(int index, const Flags& flags, bool cable, std::string store, Board* board)
      : index_(index), flags_(flags), cable_(cable), store_(std::move(store)), board_(board) {}

  void Run() {
    bytes_ = static_cast<size_t>(flags_.mib) << 20;
    out_ = Share(bytes_);
    in_ = Share(bytes_);
    if (out_ == nullptr || in_ == nullptr) Die(board_, "not enough memory");
    for (size_t i = 0; i < bytes_; ++i) out_[i] = Expected(index_, i);
    std::memset(in_, 0, bytes_);
    ConnectPlain();
    ConnectLink();
    ConnectGloo();
    const std::function<void()> arms[kArmCount] = {[this] { Plain(); }, [this] { Linked(); },
                                                   [this] { Gloo(); }};
    for (int round = 0; round < flags_.rounds + 1; ++round) {
      for (int arm = 0; arm < kArmCount; ++arm) {
        Barrier(board_);
        const double cpu = CpuMs(::getpid());
        const absl::Duration begun = clock_.Monotonic();
        arms[arm]();
        const double seconds = absl::ToDoubleSeconds(clock_.Monotonic() - begun);
        if (round == 0) {
          Check();
        } else {
          board_->seconds[index_][arm][round - 1] = seconds;
          board_->cpu_ms[index_][arm] += CpuMs(::getpid()) - cpu;
        }
      }
    }
    Barrier(board_);
  }

 private:
  static char Expected(int side, size_t i) {
    return static_cast<char>((i >> 3) * 31 + static_cast<size_t>(side) * 7 + i);
  }
  std::string Address(int side) const { return cable_ ? absl::StrCat("10.77.0.", side + 1) : "127.0.0.1"; }

  void Check() {
    for (size_t i = 0; i < bytes_; ++i) board_->wrong[index_] += in_[i] != Expected(1 - index_, i);
    std::memset(in_, 0, bytes_);
  }

  // Sends in a thread of its own while this one receives.
  template <typename Send, typename Receive>
  void BothWays(Send send, Receive receive) {
    std::thread sender(send);
    receive();
    sender.join();
  }

  void ConnectPlain() {
    const runtime::SocketAddress at = runtime::ResolveOne({Address(0), kPlainPort}).value();
    runtime::UniqueFd fd(::socket(at.family(), SOCK_STREAM, 0));
    const int one = 1;
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (index_ == 0 && (::bind(fd.get(), at.get(), at.size()) != 0 || ::listen(fd.get(), 1) != 0))
      Die(board_, absl::StrCat("cannot listen on ", at.ToString(), ": ", std::strerror(errno)));
    Barrier(board_);
    if (index_ == 0) {
      plain_.Reset(::accept(fd.get(), nullptr, nullptr));
    } else {
      if (::connect(fd.get(), at.get(), at.size()) != 0) Die(board_, "cannot connect the plain socket");
      plain_ = std::move(fd);
    }
    if (flags_.socket_kib > 0) {
      const int size = flags_.socket_kib << 10;
      ::setsockopt(plain_.get(), SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
      ::setsockopt(plain_.get(), SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
    }
  }

  void Plain() {
    BothWays(
        [this] {
          for (size_t done = 0; done < bytes_;) {
            const ssize_t n = ::send(plain_.get(), out_ + done, bytes_ - done, MSG_NOSIGNAL);
            if (n <= 0) Die(board_, "the plain socket broke");
            done += static_cast<size_t>(n);
          }
        },
        [this] {
          for (size_t done = 0; done < bytes_;) {
            const ssize_t n = ::recv(plain_.get(), in_ + done, bytes_ - done, 0);
            if (n <= 0) Die(board_, "the plain socket broke");
            done += static_cast<size_t>(n);
          }
        });
  }

  void ConnectLink() {
    const runtime::LinkIdentity me = {"00000000-0000-4000-8000-000000000000", static_cast<uint32_t>(index_),
                                      1, 1, 0};
    admission_ = std::make_unique<runtime::LinkAdmission>(me, 2);
    const runtime::Secret secret = runtime::Secret::Of(std::string(32, 'b')).value();
    runtime::LinkOptions options;
    options.socket_buffer = flags_.socket_kib << 10;
    if (index_ == 0) {
      runtime::LinkListener::Options listen;
      listen.address = runtime::ResolveOne({Address(0), kLinkPort}).value();
      listen.allow_remote = true;
      listen.secret = secret;
      listen.admission = admission_.get();
      listen.link = options;
      std::atomic<bool> there{false};
      listen.on_link = [&](std::unique_ptr<runtime::Link> link) {
        link_ = std::move(link);
        there = true;
      };
      auto listener = runtime::LinkListener::Start(std::move(listen));
      if (!listener.ok()) Die(board_, std::string(listener.status().message()));
      Barrier(board_);
      WaitFor(board_, [&] { return there.load(); });
      return;
    }
    Barrier(board_);
    auto link = runtime::Link::Dial({{Address(0), kLinkPort}, 0, secret, admission_.get()},
                                    runtime::SteadyNow() + absl::Seconds(10), options);
    if (!link.ok()) Die(board_, std::string(link.status().message()));
    link_ = *std::move(link);
  }

  void Linked() {
    const size_t frame = static_cast<size_t>(flags_.frame_kib) << 10;
    BothWays(
        [&] {
          for (size_t at = 0; at < bytes_; at += frame) {
            runtime::FrameHeader header;
            header.offset = at;
            const iovec part = {out_ + at, std::min(frame, bytes_ - at)};
            const absl::Status s = link_->Send(header, {&part, 1});
            if (!s.ok()) Die(board_, std::string(s.message()));
          }
        },
        [&] {
          for (size_t done = 0; done < bytes_;) {
            runtime::FrameHeader header;
            absl::Status s = link_->Receive(&header);
            if (s.ok() && (header.offset > bytes_ || header.length > bytes_ - header.offset))
              s = absl::OutOfRangeError("a frame beyond the memory");
            if (s.ok()) s = link_->ReceiveInto(in_ + header.offset, header.length);
            if (!s.ok()) Die(board_, std::string(s.message()));
            done += header.length;
          }
        });
  }

  void ConnectGloo() {
    gloo::transport::tcp::attr attr(Address(index_).c_str());
    gloo_device_ = gloo::transport::tcp::CreateDevice(attr);
    gloo_ = std::make_shared<gloo::rendezvous::Context>(index_, 2);
    gloo::rendezvous::FileStore store(store_);
    gloo_->connectFullMesh(store, gloo_device_);
    gloo_out_ = gloo_->createUnboundBuffer(out_, bytes_);
    gloo_in_ = gloo_->createUnboundBuffer(in_, bytes_);
  }

  void Gloo() {
    const uint64_t slot = gloo_slot_++;
    gloo_in_->recv(1 - index_, slot);
    gloo_out_->send(1 - index_, slot);
    gloo_in_->waitRecv(std::chrono::milliseconds(60000));
    gloo_out_->waitSend(std::chrono::milliseconds(60000));
  }

  const int index_;
  const Flags flags_;
  const bool cable_;
  const std::string store_;
  Board* const board_;
  const runtime::SystemClock clock_;
  size_t bytes_ = 0;
  char* out_ = nullptr;
  char* in_ = nullptr;
  runtime::UniqueFd plain_;
  std::unique_ptr<runtime::LinkAdmission> admission_;
  std::unique_ptr<runtime::Link> link_;
  std::shared_ptr<gloo::transport::Device> gloo_device_;
  std::shared_ptr<gloo::rendezvous::Context> gloo_;
  std::unique_ptr<gloo::transport::UnboundBuffer> gloo_out_, gloo_in_;
  uint64_t gloo_slot_ = 0;
};

// A network of this process's own, with one end of the cable. False: there is none, it stays on the loopback.
bool EnterNetwork(int index, bool loopback, Board* board) {
  const bool mine = !loopback && ::unshare(CLONE_NEWNET) == 0;
  board->unshared += mine ? 1 : 100;
  WaitFor(board, [&] { return board->cabled.load() != 0; });
  if (board->cabled == 2) {
    if (mine) Die(board, "one process has a network of its own, the other has none: say --loopback");
    return false;
  }
  const std::string up = absl::StrCat("ip link set lo up && ip address add 10.77.0.", index + 1,
                                      "/24 dev eth0 && ip link set eth0 up");
  if (std::system(up.c_str()) != 0) Die(board, "cannot set eth0 up: say --loopback");
  Barrier(board);
  return true;
}

pid_t Start(int index, const Flags& flags, const std::string& store, Board* board) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  try {
    const bool cable = EnterNetwork(index, flags.loopback, board);
    Side(index, flags, cable, store, board).Run();
  } catch (const std::exception& e) {
    Die(board, e.what());
  }
  std::_Exit(0);
}

bool LayCable(const pid_t pids[2], Board* board) {
  WaitFor(board, [&] { return board->unshared.load() >= 200 || board->unshared.load() == 2; });
  const bool ok =
      board->unshared == 2 && std::system(absl::StrCat("ip link add eth0 netns ", pids[0],
                                                       " type veth peer name eth0 netns ", pids[1])
                                              .c_str()) == 0;
  board->cabled = ok ? 1 : 2;
  return ok;
}

// GB/s into each side, at the best of the rounds in which both were fast: the one with the least slowest way.
std::vector<double> Rates(const Board& board, int arm, const Flags& flags) {
  const double bytes = static_cast<double>(flags.mib << 20);
  int best = 0;
  const auto slowest = [&](int round) {
    return std::max(board.seconds[0][arm][round], board.seconds[1][arm][round]);
  };
  for (int round = 1; round < flags.rounds; ++round) {
    if (slowest(round) < slowest(best)) best = round;
  }
  return {bytes / board.seconds[0][arm][best] * 1e-9, bytes / board.seconds[1][arm][best] * 1e-9};
}

void Print(const Board& board, const Flags& flags, bool cable) {
  nlohmann::json out = {
      {"mib", flags.mib}, {"frame_kib", flags.frame_kib}, {"network", cable ? "veth" : "loopback"}};
  const std::vector<double> plain = Rates(board, 0, flags);
  if (!flags.json)
    std::printf("%lld MiB each way at once, over %s\n", static_cast<long long>(flags.mib),
                cable ? "veth" : "the loopback");
  for (int arm = 0; arm < kArmCount; ++arm) {
    const std::vector<double> rates = Rates(board, arm, flags);
    const double cpu = (board.cpu_ms[0][arm] + board.cpu_ms[1][arm]) / flags.rounds;
    out[kArms[arm]] = {
        {"gb_s", rates}, {"to_plain", {rates[0] / plain[0], rates[1] / plain[1]}}, {"cpu_ms", cpu}};
    if (flags.json) continue;
    std::printf("%-6s %5.2f and %5.2f GB/s, %.2f and %.2f of plain, %6.1f ms of cores\n", kArms[arm],
                rates[0], rates[1], rates[0] / plain[0], rates[1] / plain[1], cpu);
  }
  if (flags.json) std::printf("%s\n", out.dump().c_str());
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Exchange between two hosts beside a plain socket and Gloo.", "exchange");
  app.add_option("--mib", flags.mib, "MiB each way")->check(CLI::Range(1, 4096));
  app.add_option("--rounds", flags.rounds, "Rounds of each arm, in turn; the best counts")
      ->check(CLI::Range(1, kMaxRounds));
  app.add_option("--frame-kib", flags.frame_kib, "KiB of a frame")->check(CLI::Range(4, 1 << 20));
  app.add_option("--socket-kib", flags.socket_kib, "Socket buffers of plain and link; 0: the kernel's choice")
      ->check(CLI::Range(0, 1 << 16));
  app.add_flag("--loopback", flags.loopback, "Not in network namespaces, though that may be possible");
  app.add_flag("--json", flags.json, "One JSON object on stdout");
  CLI11_PARSE(app, argc, argv);

  void* shared = Share(sizeof(Board));
  std::string store = std::filesystem::temp_directory_path() / "sherd-exchange-XXXXXX";
  if (shared == nullptr || ::mkdtemp(store.data()) == nullptr) {
    std::perror("exchange");
    return 1;
  }
  Board* const board = new (shared) Board();
  const pid_t pids[2] = {Start(0, flags, store, board), Start(1, flags, store, board)};
  const bool cable = LayCable(pids, board);
  bool ok = true;
  for (const pid_t pid : pids) {
    int status = 0;
    ok &= ::waitpid(pid, &status, 0) == pid && status == 0;
    if (!ok) board->failed = true;  // the other one ends, too
  }
  std::filesystem::remove_all(store);
  if (!ok) return 1;
  if (board->wrong[0] + board->wrong[1] > 0) {
    std::fprintf(stderr, "exchange: bytes came out other than they went in\n");
    return 1;
  }
  Print(*board, flags, cable);
  return 0;
}

}  // namespace
}  // namespace sherd::bench

int main(int argc, char** argv) { return sherd::bench::Main(argc, argv); }
