// Hosts of a job that listen and dial in one process, for tests of links.
//
//   class MyTest : public TestLinks {};
//   TEST_F(MyTest, ...) { Connect(); a_->Send(...); b_->Receive(...); }
#ifndef SHERD_RUNTIME_TEST_LINKS_H_
#define SHERD_RUNTIME_TEST_LINKS_H_

#include <sys/socket.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"
#include "runtime/link.h"
#include "runtime/link_handshake.h"
#include "runtime/link_listener.h"
#include "runtime/mutex.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {

inline constexpr char kTestJob[] = "0a1b2c3d-0000-4000-8000-000000000001";

inline Secret SecretOf(char c) { return Secret::Of(std::string(32, c)).value(); }
inline LinkIdentity HostNumber(uint32_t host) { return {kTestJob, host, 1, 1, 0}; }
inline absl::Time Soon() { return SteadyNow() + absl::Seconds(30); }

inline FrameHeader Header(uint16_t type, uint32_t stream = 0) {
  FrameHeader header;
  header.type = type;
  header.stream = stream;
  return header;
}

// What callbacks on other threads said, to be waited for.
template <typename T>
class Inbox {
 public:
  void Put(T value) {
    MutexLock lock(mu_);
    values_.push_back(std::move(value));
    changed_.SignalAll();
  }
  // The next value that `wanted` takes; those before it are dropped. Fails after half a minute.
  template <typename Wanted>
  T Next(Wanted wanted) {
    const absl::Time end = Soon();
    MutexLock lock(mu_);
    for (;;) {
      while (next_ < values_.size()) {
        if (wanted(values_[next_])) return std::move(values_[next_++]);
        ++next_;
      }
      if (SteadyNow() > end) {
        ADD_FAILURE() << "nothing came";
        return T();
      }
      changed_.WaitFor(mu_, absl::Milliseconds(100));
    }
  }
  T Next() {
    return Next([](const T&) { return true; });
  }
  size_t size() {
    MutexLock lock(mu_);
    return values_.size();
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::vector<T> values_ ABSL_GUARDED_BY(mu_);
  size_t next_ ABSL_GUARDED_BY(mu_) = 0;
};

// Host 0 listens.
class TestLinks : public ::testing::Test {
 protected:
  void Listen(LinkListener::Options options = {}) {
    options.address = ResolveOne({"127.0.0.1", 0}).value();
    options.secret = SecretOf('s');
    options.admission = &here_;
    options.on_link = [this](std::unique_ptr<Link> link) { links_.Put(std::move(link)); };
    options.on_refused = [this](const LinkRefusal& refusal) { refused_.Put(refusal); };
    listener_ = LinkListener::Start(std::move(options)).value();
  }

  absl::StatusOr<std::unique_ptr<Link>> Dial(char secret = 's', LinkOptions options = {}) {
    return Link::Dial({{"127.0.0.1", listener_->address().port()}, 0, SecretOf(secret), &there_}, Soon(),
                      std::move(options));
  }

  // Both ends of one connection.
  void Connect(LinkOptions mine = {}, LinkOptions theirs = {}) {
    LinkListener::Options options;
    options.link = std::move(mine);
    Listen(std::move(options));
    absl::StatusOr<std::unique_ptr<Link>> dialed = Dial('s', std::move(theirs));
    ASSERT_TRUE(dialed.ok()) << dialed.status();
    b_ = *std::move(dialed);
    a_ = links_.Next();
  }

  // A socket to the listener that says nothing by itself.
  UniqueFd Raw() {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const SocketAddress& to = listener_->address();
    EXPECT_EQ(::connect(fd.get(), to.get(), to.size()), 0);
    return fd;
  }

  // One that is through its handshake, but whose peer is this test.
  UniqueFd Through() {
    UniqueFd fd = Raw();
    Digest256 nonce = {};
    LinkHandshake handshake(LinkHandshake::Role::kDialer, SecretOf('s'), HostNumber(1), nonce,
                            [](const LinkIdentity&) { return absl::OkStatus(); });
    Say(fd, handshake.First());
    while (!handshake.done()) {
      std::string bytes(handshake.wants(), '\0'), answer;
      EXPECT_EQ(::recv(fd.get(), bytes.data(), bytes.size(), MSG_WAITALL), bytes.size());
      if (!handshake.Take(bytes, &answer).ok()) {
        ADD_FAILURE() << "no handshake";
        break;
      }
      Say(fd, answer);
    }
    return fd;
  }

  static void Say(const UniqueFd& fd, const std::string& bytes) {
    EXPECT_EQ(::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), bytes.size());
  }
  // Reads until the other side closes.
  static void AwaitClose(const UniqueFd& fd) {
    char sink[512];
    while (::recv(fd.get(), sink, sizeof(sink), 0) > 0) {
    }
  }

  LinkAdmission here_{HostNumber(0), 3}, there_{HostNumber(1), 3};
  Inbox<LinkRefusal> refused_;
  Inbox<std::unique_ptr<Link>> links_;
  std::unique_ptr<LinkListener> listener_;
  std::unique_ptr<Link> a_, b_;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_TEST_LINKS_H_
