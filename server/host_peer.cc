#include "server/host_peer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/convert.h"
#include "runtime/clock.h"
#include "server/host_incoming.h"
#include "server/host_outgoing.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

using runtime::FrameHeader;
using runtime::Link;
using runtime::MutexLock;
using LinkState = runtime::ControlPage::LinkState;

// A ring is lost only with its ringer.
constexpr absl::Duration kLookAgain = absl::Milliseconds(20);
constexpr absl::Duration kDialAgain = absl::Milliseconds(100);
constexpr absl::Duration kDialPatience = absl::Seconds(1);

}  // namespace

HostPeer::HostPeer(runtime::JobMemory* memory, int peer, Options options)
    : memory_(memory), peer_(peer), options_(std::move(options)), run_([this] { Run(); }) {
  if (peer_ < memory_->place().index) dial_ = std::thread([this] { Dial(); });
}

HostPeer::~HostPeer() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    if (link_ != nullptr) link_->Abort("this host's agent ends");
    changed_.SignalAll();
  }
  memory_->control().link_bell.Ring();
  run_.join();
  if (dial_.joinable()) dial_.join();
}

void HostPeer::Take(std::unique_ptr<Link> link) {
  MutexLock lock(mu_);
  if (stop_) return;
  if (link_ != nullptr) link_->Abort("the peer connected anew");
  link_ = std::move(link);
  changed_.SignalAll();
}

void HostPeer::NoteProblem(const std::string& words) {
  const std::string text = absl::StrCat("host ", peer_, ": ", words);
  {
    MutexLock lock(mu_);
    if (problem_ == words) return;
    problem_ = words;
  }
  spdlog::warn("{}", text);
  LinkState& state = memory_->control().links[peer_];
  // One that never was there is waited for, not lost.
  if (state.state.load(std::memory_order_acquire) != LinkState::kNever) state.Set(LinkState::kDown, text);
}

// Another host has taken the peer's place: the one before must not be heard any more.
void HostPeer::Fence() {
  LinkState& state = memory_->control().links[peer_];
  const uint64_t oldest = Oldest();
  if (oldest == 0 || state.fenced.load(std::memory_order_seq_cst) >= oldest) return;
  options_.admission->Fence(static_cast<uint32_t>(peer_), oldest);
  MutexLock lock(mu_);
  if (link_ != nullptr && link_->peer().incarnation < oldest)
    link_->Abort("another host has taken its place");
  if (serving_ == 0 || serving_ >= oldest) state.fenced.store(oldest, std::memory_order_seq_cst);
}

void HostPeer::Look() {
  Fence();
  std::shared_ptr<Link> link;
  {
    MutexLock lock(mu_);
    link = link_;
  }
  if (link == nullptr) return;
  const runtime::LinkHealth health = link->health();
  LinkState& state = memory_->control().links[peer_];
  if (health.state == runtime::LinkHealth::State::kAlive) state.Set(LinkState::kUp, "");
  if (health.state != runtime::LinkHealth::State::kSuspect) return;
  if (state.state.load(std::memory_order_acquire) != LinkState::kSilent) spdlog::warn("{}", health.words);
  state.Set(LinkState::kSilent, health.words);
}

v1::HostLink HostPeer::Report() const {
  v1::HostLink out;
  out.set_peer(peer_);
  out.set_gradient_bytes(bytes_.gradients.load());
  out.set_parameter_bytes(bytes_.parameters.load());
  out.set_gathered_bytes(bytes_.gathers.load());
  out.set_record_bytes(bytes_.records.load());
  MutexLock lock(mu_);
  const runtime::LinkHealth health = link_ != nullptr ? link_->health() : runtime::LinkHealth{};
  out.set_up(link_ != nullptr && health.state == runtime::LinkHealth::State::kAlive);
  if (out.up()) return out;
  out.set_problem(link_ != nullptr && health.state == runtime::LinkHealth::State::kSuspect ? health.words
                                                                                           : problem_);
  if (link_ != nullptr) ToProto(health.silence, out.mutable_silent_for());
  return out;
}

// Before there is a link, or while the peer says nothing over the one there is.
bool HostPeer::WaitsForLink() const {
  MutexLock lock(mu_);
  return link_ == nullptr || link_->health().state != runtime::LinkHealth::State::kAlive;
}

void HostPeer::Dial() {
  for (;;) {
    if (WaitsForLink()) {
      const std::string address = options_.address();
      absl::Status failed;
      absl::StatusOr<runtime::HostPort> at = runtime::ParseHostPort(address);
      if (address.empty()) {
        failed = absl::UnavailableError("its data address is not known yet");
      } else if (!at.ok()) {
        failed = at.status();
      } else {
        absl::StatusOr<std::unique_ptr<Link>> link =
            Link::Dial({*at, static_cast<uint32_t>(peer_), options_.secret, options_.admission},
                       runtime::SteadyNow() + kDialPatience);
        failed = link.status();
        if (link.ok()) Take(*std::move(link));
      }
      if (!failed.ok()) NoteProblem(std::string(failed.message()));
    }
    MutexLock lock(mu_);
    if (!stop_) changed_.WaitFor(mu_, kDialAgain);
    if (stop_) return;
  }
}

bool HostPeer::EndServing(const std::shared_ptr<Link>& link) {
  MutexLock lock(mu_);
  if (link_ == link) link_.reset();
  serving_ = 0;
  return !stop_;
}

void HostPeer::Run() {
  for (;;) {
    std::shared_ptr<Link> link;
    {
      MutexLock lock(mu_);
      while (!stop_ && link_ == nullptr) changed_.Wait(mu_);
      if (stop_) return;
      link = link_;
      serving_ = link->peer().incarnation;
      heard_hello_ = false;
      problem_.clear();
    }
    if (link->peer().incarnation < Oldest()) {
      link->Abort("another host has taken its place");
      EndServing(link);
      continue;
    }
    spdlog::info("connected to {}", link->name());
    memory_->control().links[peer_].Set(LinkState::kUp, "");
    const absl::Status ended = Serve(*link);
    if (!EndServing(link)) return;
    NoteProblem(std::string(ended.message()));
  }
}

absl::Status HostPeer::Serve(Link& link) {
  absl::Status received;
  // Of this connection alone: over the next one the peer asks anew.
  GatherRequests requests;
  std::thread receiver([&] {
    received = ReceiveAll(link, &requests);
    link.Abort(std::string(received.message()));
    // The sending thread may wait for the first frame, or for something to send.
    MutexLock lock(mu_);
    changed_.SignalAll();
    memory_->control().link_bell.Ring();
  });
  absl::Status sent = SendAll(link, &requests);
  link.Abort(std::string(sent.message()));
  receiver.join();
  // Whichever was first says why.
  return absl::IsCancelled(sent) ? received : sent;
}

absl::Status HostPeer::SendAll(Link& link, GatherRequests* requests) {
  FrameHeader hello;
  hello.type = static_cast<uint16_t>(HostFrame::kHello);
  hello.flags = HelloFlags(*memory_);
  if (absl::Status s = link.Send(hello); !s.ok()) return s;
  bool initialized = false;
  for (;;) {
    if (link.health().state == runtime::LinkHealth::State::kClosed) return absl::CancelledError("closed");
    MutexLock lock(mu_);
    if (stop_) return absl::CancelledError("this host's agent ends");
    initialized = peer_initialized_;
    if (heard_hello_) break;
    changed_.WaitFor(mu_, kLookAgain);
  }
  HostOutgoing outgoing(memory_, peer_, &bytes_, options_.gather, requests);
  outgoing.Begin(initialized);
  runtime::DoorbellWord& bell = memory_->control().link_bell;
  for (;;) {
    const uint32_t ticket = bell.Listen();
    absl::StatusOr<bool> more = outgoing.Pass(link);
    if (!more.ok()) return more.status();
    if (*more) continue;
    if (link.health().state == runtime::LinkHealth::State::kClosed) return absl::CancelledError("closed");
    bell.Wait(ticket, kLookAgain, options_.spin);
  }
}

void HostPeer::TakeHello(uint16_t flags) {
  {
    MutexLock lock(mu_);
    heard_hello_ = true;
    peer_initialized_ = (flags & kInitialized) != 0;
    changed_.SignalAll();
  }
  if (memory_->gather() == nullptr) return;
  memory_->gather()->said[peer_].fetch_or(flags, std::memory_order_acq_rel);
  memory_->gather()->bell.Ring();
  memory_->control().bell.Ring();
}

absl::Status HostPeer::ReceiveAll(Link& link, GatherRequests* requests) {
  HostIncoming incoming(memory_, peer_, options_.gather, requests);
  FrameHeader header;
  for (;;) {
    if (absl::Status s = link.Receive(&header); !s.ok()) return s;
    if (header.type == static_cast<uint16_t>(HostFrame::kHello) && header.length == 0) {
      TakeHello(header.flags);
      continue;
    }
    if (absl::Status s = incoming.Take(link, header); !s.ok()) return s;
  }
}

}  // namespace sherd::server
