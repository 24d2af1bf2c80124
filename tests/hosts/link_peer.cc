// One end of a data connection as a program, for tests between hosts: sends small frames, and says on stdout
// what it hears.
//
//   link_peer --host 0 --listen 10.77.0.1:4711 --secret-file F
//   link_peer --host 1 --dial 10.77.0.1:4711 --secret-file F      # dials again when the connection is closed
//
// Lines, each after the seconds of the monotonic clock: "listening ADDRESS", "up NAME", "frames N" (every
// tenth that came), "alive|suspect|closed WORDS", "dial WORDS" (why it failed, once for each reason),
// "refused WORDS".
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/clock.h"
#include "runtime/link.h"
#include "runtime/link_listener.h"
#include "runtime/mutex.h"

namespace sherd::tests {
namespace {

using runtime::Link;
using runtime::LinkHealth;

struct Flags {
  uint32_t host = 0;
  std::string listen, dial, secret_file, job = "0a1b2c3d-0000-4000-8000-000000000001";
  uint64_t incarnation = 1;
  size_t frame_bytes = 1000;
};

void Say(const std::string& what) {
  static std::mutex mu;
  const std::lock_guard<std::mutex> lock(mu);
  std::printf("%.6f %s\n", absl::ToDoubleSeconds(runtime::SystemClock().Monotonic()), what.c_str());
  std::fflush(stdout);
}

const char* Name(LinkHealth::State state) {
  switch (state) {
    case LinkHealth::State::kAlive:
      return "alive";
    case LinkHealth::State::kSuspect:
      return "suspect";
    case LinkHealth::State::kClosed:
      break;
  }
  return "closed";
}

// Until the connection ends.
void Talk(Link& link, const Flags& flags) {
  Say(absl::StrCat("up ", link.name()));
  runtime::Notification ended;
  std::thread sender([&] {
    std::vector<char> bytes(flags.frame_bytes, 'x');
    const iovec payload = {bytes.data(), bytes.size()};
    // A steady trickle.
    while (link.Send({}, {&payload, 1}).ok() && !ended.WaitFor(absl::Milliseconds(5))) {
    }
  });
  runtime::FrameHeader header;
  absl::Status s;
  for (int64_t frames = 1; s.ok(); ++frames) {
    s = link.Receive(&header);
    if (s.ok()) s = link.Skip(header.length);
    if (s.ok() && frames % 10 == 0) Say(absl::StrCat("frames ", frames));
  }
  link.Abort(std::string(s.message()));
  ended.Notify();
  sender.join();
}

runtime::LinkOptions Heard() {
  runtime::LinkOptions options;
  options.on_health = [](const LinkHealth& h) { Say(absl::StrCat(Name(h.state), " ", h.words)); };
  return options;
}

// Talks to whoever comes, one after the other; a newer connection ends the one before it.
int Listen(const Flags& flags, const runtime::Secret& secret, runtime::LinkAdmission& admission) {
  runtime::Mutex mu;
  runtime::CondVar came;
  std::unique_ptr<Link> next;
  Link* current = nullptr;
  runtime::LinkListener::Options options;
  absl::StatusOr<runtime::HostPort> at = runtime::ParseHostPort(flags.listen);
  options.address = runtime::ResolveOne(at.value()).value();
  options.allow_remote = true;
  options.secret = secret;
  options.admission = &admission;
  options.link = Heard();
  options.on_refused = [](const runtime::LinkRefusal& r) { Say(absl::StrCat("refused ", r.words)); };
  options.on_link = [&](std::unique_ptr<Link> link) {
    runtime::MutexLock lock(mu);
    next = std::move(link);
    if (current != nullptr) current->Abort("a newer connection took its place");
    came.SignalAll();
  };
  auto listener = runtime::LinkListener::Start(std::move(options));
  if (!listener.ok()) {
    std::fprintf(stderr, "link_peer: %s\n", std::string(listener.status().message()).c_str());
    return 1;
  }
  Say(absl::StrCat("listening ", (*listener)->address().ToString()));
  for (;;) {
    std::unique_ptr<Link> link;
    {
      runtime::MutexLock lock(mu);
      while (next == nullptr) came.Wait(mu);
      link = std::move(next);
      current = link.get();
    }
    Talk(*link, flags);
    runtime::MutexLock lock(mu);
    current = nullptr;
  }
}

int Dial(const Flags& flags, const runtime::Secret& secret, runtime::LinkAdmission& admission) {
  const runtime::HostPort at = runtime::ParseHostPort(flags.dial).value();
  runtime::Notification never;
  std::string said;
  for (;;) {
    auto link = Link::Dial({at, 0, secret, &admission}, runtime::SteadyNow() + absl::Seconds(1), Heard());
    if (link.ok()) {
      Talk(**link, flags);
      said.clear();
      continue;
    }
    const std::string words(link.status().message());
    if (words != said) Say(absl::StrCat("dial ", words));
    said = words;
    never.WaitFor(absl::Milliseconds(50));
  }
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("One end of a data connection.", "link_peer");
  app.add_option("--host", flags.host, "Index of this host")->required();
  app.add_option("--listen", flags.listen, "HOST:PORT");
  app.add_option("--dial", flags.dial, "HOST:PORT of host 0");
  app.add_option("--secret-file", flags.secret_file, "The job's secret")->required();
  app.add_option("--job", flags.job, "Its uuid");
  app.add_option("--incarnation", flags.incarnation, "Of this host's agent");
  app.add_option("--frame-bytes", flags.frame_bytes, "Payload of a frame");
  CLI11_PARSE(app, argc, argv);
  ::signal(SIGPIPE, SIG_IGN);
  absl::StatusOr<runtime::Secret> secret = runtime::ReadSecretFile(flags.secret_file);
  if (!secret.ok() || flags.listen.empty() == flags.dial.empty()) {
    std::fprintf(stderr, "link_peer: --listen or --dial; %s\n",
                 std::string(secret.status().message()).c_str());
    return 2;
  }
  runtime::LinkAdmission admission({flags.job, flags.host, flags.incarnation, 1, 0}, 8);
  return flags.dial.empty() ? Listen(flags, *secret, admission) : Dial(flags, *secret, admission);
}

}  // namespace
}  // namespace sherd::tests

int main(int argc, char** argv) { return sherd::tests::Main(argc, argv); }
