#include "runtime/etcd/etcd_client.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "runtime/clock.h"

namespace sherd::runtime {
namespace {

constexpr int kMaxMessageBytes = 64 << 20;
constexpr absl::Duration kLongestAttempt = absl::Seconds(5);
constexpr absl::Duration kFirstPause = absl::Milliseconds(20);
constexpr absl::Duration kLongestPause = absl::Milliseconds(320);

std::unique_ptr<EtcdClient::Server> MakeServer(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  // A server that was restarted is to be tried again soon.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
  // Each client its own connection: one that hangs is nobody else's.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  auto server = std::make_unique<EtcdClient::Server>();
  server->address = address;
  server->channel = channel;
  server->kv = etcdserverpb::KV::NewStub(channel);
  server->watch = etcdserverpb::Watch::NewStub(channel);
  server->lease = etcdserverpb::Lease::NewStub(channel);
  server->maintenance = etcdserverpb::Maintenance::NewStub(channel);
  return server;
}

std::vector<std::unique_ptr<EtcdClient::Server>> ConnectAll(const std::vector<std::string>& addresses) {
  std::vector<std::unique_ptr<EtcdClient::Server>> servers;
  for (const std::string& address : addresses) servers.push_back(MakeServer(address));
  return servers;
}

// Whether another server, or the same one later, may answer otherwise.
bool MayPass(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
    case grpc::StatusCode::CANCELLED:  // by a server that ends
    case grpc::StatusCode::UNKNOWN:
    case grpc::StatusCode::INTERNAL:
      return true;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return absl::StrContains(status.error_message(), "too many requests");
    default:
      return false;
  }
}

std::string Words(const grpc::Status& status) {
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) return "does not answer";
  return status.error_message().empty() ? absl::StrCat("error ", status.error_code())
                                        : status.error_message();
}

}  // namespace

// ---- EtcdCancel

void EtcdCancel::Cancel() {
  MutexLock lock(mu_);
  cancelled_ = true;
  if (context_ != nullptr) context_->TryCancel();
  changed_.SignalAll();
}

bool EtcdCancel::cancelled() const {
  MutexLock lock(mu_);
  return cancelled_;
}

bool EtcdCancel::Sleep(absl::Duration time) {
  const absl::Time end = SteadyNow() + time;
  MutexLock lock(mu_);
  while (!cancelled_) {
    const absl::Duration left = end - SteadyNow();
    if (left <= absl::ZeroDuration()) return true;
    changed_.WaitFor(mu_, left);
  }
  return false;
}

bool EtcdCancel::Enter(grpc::ClientContext* context) {
  MutexLock lock(mu_);
  if (cancelled_) return false;
  context_ = context;
  return true;
}

void EtcdCancel::Leave() {
  MutexLock lock(mu_);
  context_ = nullptr;
}

// ---- EtcdClient

EtcdClient::EtcdClient(Options options)
    : options_(std::move(options)), servers_(ConnectAll(options_.endpoints)), last_answer_(SteadyNow()) {}

std::string EtcdClient::addresses() const { return absl::StrJoin(options_.endpoints, ","); }

EtcdClient::Server& EtcdClient::current() const {
  MutexLock lock(mu_);
  return *servers_[current_];
}

bool EtcdClient::Connect(const Server& server) const {
  // gRPC gets on with a connection only while somebody waits for it; and then not for long if there are
  // others to ask.
  const absl::Time deadline = SteadyNow() + (servers_.size() == 1 ? options_.attempt : options_.attempt / 4);
  bool tried = false;
  for (;;) {
    const grpc_connectivity_state state = server.channel->GetState(/*try_to_connect=*/true);
    if (state == GRPC_CHANNEL_READY) return true;
    if (state == GRPC_CHANNEL_SHUTDOWN || (tried && state == GRPC_CHANNEL_TRANSIENT_FAILURE)) return false;
    tried = tried || state == GRPC_CHANNEL_CONNECTING;
    if (!server.channel->WaitForStateChange(state, ToTimeOfDay(deadline))) return false;
  }
}

void EtcdClient::Answered() {
  MutexLock lock(mu_);
  last_answer_ = SteadyNow();
  last_failure_.clear();
}

void EtcdClient::Failed(const Server& server, absl::string_view why) {
  MutexLock lock(mu_);
  last_failure_ = absl::StrCat(server.address, ": ", why);
  // Somebody else may have gone on already.
  if (servers_[current_].get() == &server) current_ = (current_ + 1) % servers_.size();
}

std::string EtcdClient::Trouble() const {
  MutexLock lock(mu_);
  // One server that went is no trouble: the next one is asked.
  if (last_failure_.empty() || SteadyNow() - last_answer_ < options_.attempt) return "";
  return absl::StrCat(
      "etcd at ", addresses(), " has not answered since ",
      absl::FormatTime("%H:%M:%S", absl::FromChrono(ToTimeOfDay(last_answer_)), absl::LocalTimeZone()));
}

absl::Status EtcdClient::Call(absl::string_view what, absl::Time deadline, EtcdCancel* cancel,
                              const Method& method) {
  EtcdCancel nobody;
  if (cancel == nullptr) cancel = &nobody;
  absl::Duration attempt = options_.attempt, pause = kFirstPause;
  for (size_t tries = 1;; ++tries) {
    Server& server = current();
    const bool connected = Connect(server);
    grpc::ClientContext context;
    context.set_deadline(ToTimeOfDay(std::min(SteadyNow() + attempt, deadline)));
    // Else a server that is cut off from the others lets a caller wait.
    context.AddMetadata("hasleader", "true");
    if (!cancel->Enter(&context)) return absl::CancelledError(absl::StrCat("cannot ", what, ": cancelled"));
    const grpc::Status status =
        connected ? method(server, &context) : grpc::Status(grpc::StatusCode::UNAVAILABLE, "no connection");
    cancel->Leave();
    if (!status.ok() && cancel->cancelled())
      return absl::CancelledError(absl::StrCat("cannot ", what, ": cancelled"));
    if (status.ok() || !MayPass(status)) {
      Answered();
      if (status.ok()) return absl::OkStatus();
      const absl::string_view unknown = status.error_code() == grpc::StatusCode::UNIMPLEMENTED
                                            ? " (is this an etcd server of version 3?)"
                                            : "";
      return absl::Status(
          static_cast<absl::StatusCode>(status.error_code()),
          absl::StrCat("cannot ", what, ": etcd at ", server.address, ": ", status.error_message(), unknown));
    }
    Failed(server, Words(status));
    if (SteadyNow() >= deadline) {
      return absl::UnavailableError(absl::StrCat("cannot ", what, ": no etcd answers at ", addresses(), " (",
                                                 server.address, ": ", Words(status),
                                                 "); start it, or name the right addresses"));
    }
    if (tries % servers_.size() != 0) continue;
    // All were asked: etcd elects a leader, or is away.
    attempt = std::min(2 * attempt, kLongestAttempt);
    cancel->Sleep(std::min(pause, std::max(absl::ZeroDuration(), deadline - SteadyNow())));
    pause = std::min(2 * pause, kLongestPause);
  }
}

std::string EtcdPrefixEnd(std::string prefix) {
  while (!prefix.empty() && prefix.back() == '\xff') prefix.pop_back();
  if (prefix.empty()) return std::string(1, '\0');  // all keys from the beginning on
  prefix.back() = static_cast<char>(static_cast<unsigned char>(prefix.back()) + 1);
  return prefix;
}

etcdserverpb::Compare EtcdCreatedAt(std::string key, int64_t revision) {
  etcdserverpb::Compare compare;
  compare.set_target(etcdserverpb::Compare::CREATE);
  compare.set_key(std::move(key));
  compare.set_create_revision(revision);
  return compare;
}

etcdserverpb::Compare EtcdChangedAt(std::string key, int64_t revision) {
  etcdserverpb::Compare compare;
  compare.set_target(etcdserverpb::Compare::MOD);
  compare.set_key(std::move(key));
  compare.set_mod_revision(revision);
  return compare;
}

}  // namespace sherd::runtime
