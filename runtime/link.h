// One authenticated connection between the agents of two hosts: frames both ways, straight from and into
// shared memory.
//
//   // One host listens (runtime/link_listener.h), the other dials:
//   absl::StatusOr<std::unique_ptr<Link>> link =
//       Link::Dial({{"10.0.0.2", 4711}, /*host=*/1, secret, &admission}, SteadyNow() + absl::Seconds(5));
//
//   // The sending thread:
//   FrameHeader header;  header.type = kSlice;  header.stream = unit;  header.mark = mark;
//   iovec payload = {outbox + offset, bytes};                     // header.length is set by Send
//   absl::Status s = (*link)->Send(header, {&payload, 1});
//
//   // The receiving thread:
//   while ((*link)->Receive(&header).ok()) {
//     if (header does not fit this host's memory) (*link)->Skip(header.length);
//     else (*link)->ReceiveInto(inbox + header.offset, header.length);
//   }
//
// The order of frames is kept. When Send has returned, the payload is the kernel's: the memory may change.
//
// Threads. One thread may send and one may receive, at the same time; Abort(), health() and the counters may
// be used by any. Destroy it when nobody calls any more (Abort() makes them return).
//
// Life. A connection that is closed or reset, or whose peer's process died, is known at once: calls in
// progress return UNAVAILABLE, and on_health hears kClosed even if nobody receives. When nothing is sent for
// 250 ms the link sends a heartbeat itself; after 1.5 s of silence the peer is *suspect*: health() and
// on_health say so, nothing is closed, and it is alive again with the next byte. Silence is what the kernel
// did not hear, so a slow reader here does not make the peer suspect. After a cut TCP tries again
// every second, for a quarter of an hour; who dials may dial again meanwhile and Abort() the old link.
//
// Every error names the host and its address. Errors: UNAVAILABLE (closed, reset, timed out), CANCELLED
// (Abort(), with its reason), DATA_LOSS and RESOURCE_EXHAUSTED (what came is no frame, or too large: the link
// is of no use then and closed), FAILED_PRECONDITION (calls in the wrong order). After any error the link
// stays closed.
#ifndef SHERD_RUNTIME_LINK_H_
#define SHERD_RUNTIME_LINK_H_

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "runtime/link_admission.h"
#include "runtime/link_liveness.h"
#include "runtime/link_protocol.h"
#include "runtime/mutex.h"
#include "runtime/net_address.h"
#include "runtime/secret_file.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {

struct LinkHealth {
  enum class State { kAlive, kSuspect, kClosed };
  State state = State::kAlive;
  // Since the last byte came.
  absl::Duration silence;
  // For people: "host 1 (10.0.0.2:4711) has said nothing for 1.6 s".
  std::string words;
};

struct LinkOptions {
  // Largest payload of a frame that is taken, in bytes.
  uint64_t max_payload = uint64_t{1} << 30;
  // Send and receive buffer of the socket in bytes; 0 leaves them to the kernel, which grows them as the
  // connection needs (bench/README.md).
  int socket_buffer = 0;
  LinkLiveness::Policy liveness;
  // Called by the link's own thread whenever the state changes; must not block nor destroy the link. May be
  // empty.
  std::function<void(const LinkHealth&)> on_health;
};

// A frame of a batch: its length is that of the payload.
struct LinkFrame {
  FrameHeader header;
  absl::Span<const iovec> payload;
};

class Link {
 public:
  struct Place {
    HostPort address;
    uint32_t host = 0;  // who must answer there
    Secret secret;
    LinkAdmission* admission = nullptr;  // borrowed until Dial returns
  };

  // Connects and proves to each other who is who. Blocks until `deadline` at most (and while a name is
  // resolved); may be repeated.
  //   UNAVAILABLE          nobody listens there, or it closed the connection
  //   DEADLINE_EXCEEDED    no answer in time
  //   UNAUTHENTICATED      one of the two does not know the secret
  //   else                 refused, here or there: link_admission.h; INVALID_ARGUMENT: not an address
  static absl::StatusOr<std::unique_ptr<Link>> Dial(const Place& place, absl::Time deadline,
                                                    LinkOptions options = {});

  // A connected socket whose peer has proved to be `peer`; what LinkListener makes of its own.
  static std::unique_ptr<Link> Adopt(UniqueFd socket, LinkIdentity peer, std::string address,
                                     LinkOptions options);

  // Abort().
  ~Link();

  // Sends one frame: the header, then the payload in order. Blocks while the connection takes no more.
  // INVALID_ARGUMENT when memory named by `payload` is not mapped. `header.length` is ignored.
  absl::Status Send(const FrameHeader& header, absl::Span<const iovec> payload = {});
  // The same for several frames, with as few system calls as possible: for small ones.
  absl::Status SendBatch(absl::Span<const LinkFrame> frames);

  // Waits for the next frame. REQUIRES: the payload of the last was taken whole.
  absl::Status Receive(FrameHeader* header);
  // Takes the next `bytes` of the payload; it may be taken in several pieces.
  absl::Status ReceiveInto(void* to, size_t bytes);
  absl::Status Skip(uint64_t bytes);

  // Ends the connection and every call in progress, and those to come, with CANCELLED and `why`. Any thread;
  // a second call does nothing.
  void Abort(const std::string& why = "the link was aborted");

  LinkHealth health() const;

  const LinkIdentity& peer() const { return peer_; }
  // "host 1 (10.0.0.2:4711)".
  const std::string& name() const { return name_; }
  // Since the connection was made, headers and heartbeats included.
  int64_t bytes_sent() const { return sent_.load(std::memory_order_relaxed); }
  int64_t bytes_received() const { return received_.load(std::memory_order_relaxed); }

 private:
  class SendTurn;
  static constexpr size_t kReadAhead = 16 << 10;

  Link(UniqueFd socket, LinkIdentity peer, std::string address, LinkOptions options);
  void Watch();
  bool PeerClosed();
  void NoteHeard(absl::Duration now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TryHeartbeat();
  // Sends all of it; the array is changed.
  absl::Status SendAll(iovec* parts, size_t count);
  absl::Status Fill(void* to, size_t bytes);
  // Ends the connection because of `why`, unless it has ended already; why it ended.
  absl::Status Fail(absl::Status why);
  absl::Status Failed(absl::string_view doing, int error);

  // Constant.
  const LinkOptions options_;
  const LinkIdentity peer_;
  const std::string name_;
  const UniqueFd socket_;
  const UniqueFd wake_;

  // Self-synchronised.
  std::atomic<int64_t> sent_{0}, received_{0};
  std::atomic<int64_t> last_sent_ns_{0}, last_read_ns_{0};
  // True while somebody writes to the socket: Send, or the watching thread with a heartbeat, which never
  // waits for it.
  std::atomic<bool> sending_{false};

  // Of whoever has set sending_: the rest of a heartbeat that the socket did not take whole.
  std::string tail_;

  // Of the receiving thread.
  std::unique_ptr<char[]> ahead_;  // bytes read beyond what was asked for
  size_t ahead_begin_ = 0, ahead_end_ = 0;
  uint64_t payload_left_ = 0;

  mutable Mutex mu_;
  LinkLiveness liveness_ ABSL_GUARDED_BY(mu_);
  absl::Status ended_ ABSL_GUARDED_BY(mu_);
  bool has_ended_ ABSL_GUARDED_BY(mu_) = false;
  // The peer's end is closed; what it sent before may still be received.
  bool peer_closed_ ABSL_GUARDED_BY(mu_) = false;

  std::thread watch_;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_LINK_H_
