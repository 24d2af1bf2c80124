// Takes data connections from the other hosts of a job, and from nobody else.
//
//   LinkListener::Options options;
//   options.address = *ResolveOne({"10.0.0.1", 0});
//   options.secret = secret;   options.admission = &admission;
//   options.on_link = [&](std::unique_ptr<Link> link) { agent.TakeLink(std::move(link)); };
//   options.on_refused = [](const LinkRefusal& r) { spdlog::warn("{}", r.words); };
//   absl::StatusOr<std::unique_ptr<LinkListener>> listener = LinkListener::Start(std::move(options));
//   (*listener)->address()                                     // with the port that was given
//
// Strangers. A peer has `handshake_limit` for its whole handshake (runtime/link_handshake.h), however slowly
// it sends; of those that are not through at most `pending_limit` are kept, and the oldest goes when another
// comes, so that one who opens connections and says nothing keeps nobody out. What does not speak the
// protocol is closed at its first bytes. Nothing is allocated by what a peer says. on_refused hears of each
// address once in ten seconds, with the number of times it was not told.
//
// Thread-safe.
#ifndef SHERD_RUNTIME_LINK_LISTENER_H_
#define SHERD_RUNTIME_LINK_LISTENER_H_

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "runtime/link.h"
#include "runtime/link_admission.h"
#include "runtime/net_address.h"
#include "runtime/refusal_log.h"
#include "runtime/secret_file.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {

struct LinkRefusal {
  std::string address;  // of the peer, with its port
  absl::Status why;
  int64_t untold = 0;  // refusals of this address since the last one told
  std::string words;   // all of it, one line
};

class LinkListener {
 public:
  struct Options {
    SocketAddress address;  // port 0: any
    // Addresses that other hosts can reach are listened on only when this is set.
    bool allow_remote = false;
    absl::optional<Secret> secret;       // must be there
    LinkAdmission* admission = nullptr;  // borrowed
    LinkOptions link;
    absl::Duration handshake_limit = absl::Seconds(2);
    int pending_limit = 16;
    // Called for every peer that is through, one at a time, on the listener's thread: must not block.
    std::function<void(std::unique_ptr<Link>)> on_link;
    // On the same thread; may be empty.
    std::function<void(const LinkRefusal&)> on_refused;
  };

  //   INVALID_ARGUMENT  no secret; or not a loopback address, without allow_remote; or not one of this host
  //   ALREADY_EXISTS    somebody listens there
  static absl::StatusOr<std::unique_ptr<LinkListener>> Start(Options options);

  // Stops; links handed on live on. Returns when no callback runs any more; not to be called from one.
  ~LinkListener();

  const SocketAddress& address() const { return address_; }

 private:
  struct Pending;
  LinkListener(Options options, SocketAddress address, UniqueFd socket, UniqueFd stop);
  void Run();
  void Accept();
  // False when the peer is through or refused: it leaves the list.
  bool Advance(Pending& peer);
  void Refuse(const Pending& peer, const absl::Status& why);

  const Options options_;
  const SocketAddress address_;
  const UniqueFd socket_, stop_;
  // Of the listener's thread.
  RefusalLog refusals_;
  std::list<Pending> pending_;  // oldest first
  std::thread thread_;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_LINK_LISTENER_H_
