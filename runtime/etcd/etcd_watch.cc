#include "runtime/etcd/etcd_watch.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/support/async_stream.h"
#include "runtime/clock.h"

namespace sherd::runtime {
namespace {

using etcdserverpb::WatchRequest;
using etcdserverpb::WatchResponse;

// How often a silent server is asked whether it is there; after as long again it is given up.
constexpr absl::Duration kSignOfLife = absl::Seconds(2);
constexpr absl::Duration kLook = absl::Milliseconds(500);
constexpr absl::Duration kPause = absl::Milliseconds(50);

// The watch stream of one server, for one thread.
class Stream {
 public:
  enum class Got { kMessage, kNothing, kEnd };

  Stream(EtcdClient::Server& server, grpc::ClientContext* context) : context_(context) {
    stream_ = server.watch->PrepareAsyncWatch(context_, &queue_);
    stream_->StartCall(Tag(kStart));
    pending_ = 1;
  }
  ~Stream() {
    context_->TryCancel();
    while (pending_ > 0) Next(absl::InfiniteFuture());
    grpc::Status status;
    stream_->Finish(&status, Tag(kFinish));
    pending_ = 1;
    while (pending_ > 0) Next(absl::InfiniteFuture());
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  // Sent when what was asked before has been; a second one before that replaces the first.
  void Send(WatchRequest request) {
    next_request_ = std::move(request);
    want_send_ = true;
    MaybeSend();
  }

  Got Read(WatchResponse* out, absl::Time deadline) {
    for (;;) {
      if (broken_) return Got::kEnd;
      if (got_) {
        *out = std::move(message_);
        got_ = false;
        MaybeRead();
        return Got::kMessage;
      }
      if (!Next(deadline)) return Got::kNothing;
    }
  }

 private:
  enum Op : intptr_t { kStart = 1, kSend, kRead, kFinish };
  static void* Tag(Op op) { return reinterpret_cast<void*>(op); }

  void MaybeSend() {
    if (!started_ || sending_ || !want_send_ || broken_) return;
    want_send_ = false;
    sending_ = true;
    ++pending_;
    stream_->Write(next_request_, Tag(kSend));
  }
  void MaybeRead() {
    if (!started_ || reading_ || got_ || broken_) return;
    reading_ = true;
    ++pending_;
    stream_->Read(&message_, Tag(kRead));
  }

  // Takes in one completion; false when none came until `deadline`.
  bool Next(absl::Time deadline) {
    void* tag;
    bool ok;
    if (queue_.AsyncNext(&tag, &ok, ToTimeOfDay(deadline)) != grpc::CompletionQueue::GOT_EVENT) return false;
    --pending_;
    broken_ = broken_ || !ok;
    switch (static_cast<Op>(reinterpret_cast<intptr_t>(tag))) {
      case kStart:
        started_ = ok;
        break;
      case kSend:
        sending_ = false;
        break;
      case kRead:
        reading_ = false;
        got_ = ok;
        break;
      case kFinish:
        return true;
    }
    MaybeSend();
    MaybeRead();
    return true;
  }

  grpc::ClientContext* const context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<WatchRequest, WatchResponse>> stream_;
  WatchRequest next_request_;
  WatchResponse message_;
  int pending_ = 0;
  bool started_ = false, sending_ = false, want_send_ = false, reading_ = false, got_ = false,
       broken_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<EtcdWatch>> EtcdWatch::Start(std::shared_ptr<EtcdClient> client,
                                                            std::string key, std::string range_end,
                                                            absl::Time deadline, Tell tell) {
  std::unique_ptr<EtcdWatch> watch(
      new EtcdWatch(std::move(client), std::move(key), std::move(range_end), std::move(tell)));
  // From the revision of this listing on nothing is missed, whenever the stream is opened.
  if (absl::Status s = watch->List(deadline, /*tell_changes=*/false); !s.ok()) return s;
  watch->thread_ = std::thread([w = watch.get()] { w->Run(); });
  return watch;
}

EtcdWatch::EtcdWatch(std::shared_ptr<EtcdClient> client, std::string key, std::string range_end, Tell tell)
    : client_(std::move(client)),
      key_(std::move(key)),
      range_end_(std::move(range_end)),
      tell_(std::move(tell)) {}

EtcdWatch::~EtcdWatch() {
  cancel_.Cancel();
  if (thread_.joinable()) thread_.join();
}

absl::Status EtcdWatch::List(absl::Time deadline, bool tell_changes) {
  etcdserverpb::RangeRequest request;
  request.set_key(key_);
  request.set_range_end(range_end_);
  request.set_keys_only(true);
  etcdserverpb::RangeResponse response;
  const absl::Status s = client_->Call(absl::StrCat("list ", key_), deadline, &cancel_,
                                       [&](EtcdClient::Server& server, grpc::ClientContext* context) {
                                         return server.kv->Range(context, request, &response);
                                       });
  if (!s.ok()) return s;
  std::set<std::string> gone = std::move(known_);
  known_.clear();
  for (const etcdserverpb::KeyValue& kv : response.kvs()) {
    known_.insert(kv.key());
    gone.erase(kv.key());
    if (tell_changes && kv.mod_revision() >= next_) tell_(kv.key());
  }
  if (tell_changes) {
    for (const std::string& key : gone) tell_(key);
  }
  next_ = response.header().revision() + 1;
  return absl::OkStatus();
}

void EtcdWatch::Run() {
  while (!cancel_.cancelled()) {
    if (compacted_) {
      // UNAVAILABLE: again, until somebody answers.
      if (!List(SteadyNow() + client_->options().patience, /*tell_changes=*/true).ok()) continue;
      compacted_ = false;
    }
    EtcdClient::Server& server = client_->current();
    const std::string why = client_->Connect(server) ? Follow(server) : "no connection";
    if (compacted_ || cancel_.cancelled()) continue;
    client_->Failed(server, why);
    cancel_.Sleep(kPause);
  }
}

std::string EtcdWatch::Follow(EtcdClient::Server& server) {
  grpc::ClientContext context;
  // Else a server that is cut off from the others is silent for ever.
  context.AddMetadata("hasleader", "true");
  // Else whoever ends the watch would wait until it looks again.
  if (!cancel_.Enter(&context)) return "cancelled";
  const absl::Cleanup leave = [this] { cancel_.Leave(); };
  Stream stream(server, &context);
  WatchRequest create;
  create.mutable_create_request()->set_key(key_);
  create.mutable_create_request()->set_range_end(range_end_);
  create.mutable_create_request()->set_start_revision(next_);
  stream.Send(std::move(create));
  absl::Time heard = SteadyNow(), asked = absl::InfiniteFuture();
  bool created = false;
  while (!cancel_.cancelled()) {
    WatchResponse response;
    switch (stream.Read(&response, SteadyNow() + kLook)) {
      case Stream::Got::kEnd:
        return "the watch broke";
      case Stream::Got::kMessage: {
        created = true;
        heard = SteadyNow();
        asked = absl::InfiniteFuture();
        client_->Answered();
        if (std::string why; !Take(response, &why)) return why;
        break;
      }
      case Stream::Got::kNothing: {
        const absl::Time now = SteadyNow();
        if (now - asked > kSignOfLife || (!created && now - heard > kSignOfLife)) return "does not answer";
        if (created && now - heard > kSignOfLife && asked == absl::InfiniteFuture()) {
          WatchRequest ask;
          ask.mutable_progress_request();
          stream.Send(std::move(ask));
          asked = now;
        }
      }
    }
  }
  return "";
}

bool EtcdWatch::Take(const WatchResponse& response, std::string* why) {
  for (const etcdserverpb::Event& event : response.events()) {
    if (event.type() == etcdserverpb::Event::DELETE) {
      known_.erase(event.kv().key());
    } else {
      known_.insert(event.kv().key());
    }
    // The changes of one revision come in one message.
    next_ = std::max(next_, event.kv().mod_revision());
    tell_(event.kv().key());
  }
  if (response.events_size() > 0) ++next_;
  if (!response.canceled()) return true;
  compacted_ = response.compact_revision() > 0;
  *why = absl::StrCat("ended the watch: ", response.cancel_reason());
  return false;
}

}  // namespace sherd::runtime
