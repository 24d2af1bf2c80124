#include "server/host_shares.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "proto/status.h"
#include "runtime/clock.h"
#include "runtime/crc32c.h"
#include "runtime/mutex.h"

namespace sherd::server {
namespace {

using runtime::MutexLock;

constexpr size_t kMostChunks = 8;  // read ahead
constexpr absl::Duration kLook = absl::Milliseconds(50);
constexpr absl::Duration kKeepEvery = absl::Seconds(5);
constexpr absl::Duration kKeepPatience = absl::Seconds(2);

}  // namespace

// One host's share, from some byte on.
class HostShares::Stream {
 public:
  Stream(const OtherHosts* others, int host, v1::ReadShareRequest request, absl::Time deadline)
      : others_(others), host_(host), request_(std::move(request)), at_(request_.offset()) {
    absl::StatusOr<std::unique_ptr<OtherHosts::Stub>> stub = others->Prepare(host, deadline, &context_);
    if (!stub.ok()) {
      MutexLock lock(mu_);
      ended_ = true;
      status_ = stub.status();
      return;
    }
    stub_ = *std::move(stub);
    thread_ = std::thread([this] { Receive(); });
  }

  ~Stream() {
    {
      MutexLock lock(mu_);
      stop_ = true;
      changed_.SignalAll();
    }
    context_.TryCancel();
    if (thread_.joinable()) thread_.join();
  }

  // Where the next byte that Read gives lies.
  uint64_t at() const { return at_; }

  absl::Status Read(absl::Span<char> out) {
    while (!out.empty()) {
      if (used_ == front_.size()) {
        if (absl::Status s = Next(); !s.ok()) return s;
      }
      const size_t n = std::min(out.size(), front_.size() - used_);
      std::memcpy(out.data(), front_.data() + used_, n);
      used_ += n;
      at_ += n;
      out.remove_prefix(n);
    }
    return absl::OkStatus();
  }

 private:
  // Waits for the next chunk; a cut cable says nothing, so somebody has to look.
  absl::Status Next() {
    for (;;) {
      MutexLock lock(mu_);
      if (!chunks_.empty()) {
        front_ = std::move(chunks_.front());
        chunks_.pop_front();
        used_ = 0;
        changed_.SignalAll();
        return absl::OkStatus();
      }
      if (ended_ && status_.ok()) {
        return absl::UnavailableError(absl::StrCat("host ", host_, " sent less than its share"));
      }
      if (ended_) return status_;
      changed_.WaitFor(mu_, kLook);
      if (!chunks_.empty() || ended_) continue;
      if (const std::string problem = others_->Problem(host_); !problem.empty())
        return absl::UnavailableError(problem);
    }
  }

  void Receive() {
    const auto reader = stub_->ReadShare(&context_, request_);
    v1::Chunk chunk;
    uint64_t due = request_.offset();
    absl::Status bad;
    bool whole = true;
    while (whole && reader->Read(&chunk)) {
      if (chunk.offset() != due || chunk.data().empty() || runtime::Crc32c(chunk.data()) != chunk.crc32c()) {
        bad = absl::UnavailableError(
            absl::StrCat("host ", host_, " sent damaged bytes from ", due, " on of its share"));
        context_.TryCancel();
        whole = false;
        continue;
      }
      due += chunk.data().size();
      MutexLock lock(mu_);
      while (!stop_ && chunks_.size() >= kMostChunks) changed_.Wait(mu_);
      whole = !stop_;
      if (whole) chunks_.push_back(std::move(*chunk.mutable_data()));
      changed_.SignalAll();
    }
    // After the cancellation only what is on its way already is read, unseen.
    while (!whole && reader->Read(&chunk)) continue;
    const absl::Status ended = FromGrpc(reader->Finish());
    MutexLock lock(mu_);
    ended_ = true;
    status_ = bad.ok() ? OtherHosts::Named(host_, ended) : bad;
    changed_.SignalAll();
  }

  const OtherHosts* const others_;
  const int host_;
  const v1::ReadShareRequest request_;
  grpc::ClientContext context_;
  std::unique_ptr<OtherHosts::Stub> stub_;

  // The reader's.
  std::string front_;
  size_t used_ = 0;
  uint64_t at_;

  runtime::Mutex mu_;
  runtime::CondVar changed_;
  std::deque<std::string> chunks_ ABSL_GUARDED_BY(mu_);
  bool stop_ ABSL_GUARDED_BY(mu_) = false, ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

HostShares::HostShares(const OtherHosts* others, const std::string& job, const SnapshotReader& reader,
                       absl::Time deadline)
    : others_(others), keep_every_(std::min(kKeepEvery, reader.idle_timeout() / 4)), deadline_(deadline) {
  request_.set_job(job);
  request_.set_snapshot_id(reader.id());
  request_.set_step(reader.step().value());
}

HostShares::~HostShares() = default;

void HostShares::Add(const v1::TensorRef& tensor,
                     const google::protobuf::RepeatedPtrField<v1::SliceDimension>& slice, v1::DType dtype) {
  v1::ReadShareRequest::Item* item = request_.add_items();
  *item->mutable_tensor() = tensor;
  *item->mutable_slice() = slice;
  item->set_dtype(dtype);
}

void HostShares::Begin(int host, uint64_t offset) {
  v1::ReadShareRequest request = request_;
  request.set_offset(offset);
  std::unique_ptr<Stream>& stream = streams_[host];
  stream.reset();  // the one before ends first
  stream = std::make_unique<Stream>(others_, host, std::move(request), deadline_);
}

absl::Status HostShares::Read(int host, uint64_t offset, absl::Span<char> out) {
  const auto it = streams_.find(host);
  if (it == streams_.end() || it->second->at() != offset) Begin(host, offset);
  return streams_[host]->Read(out);
}

absl::Status HostShares::KeepAlive() {
  const absl::Time now = runtime::SteadyNow();
  if (now < kept_ + keep_every_) return absl::OkStatus();
  kept_ = now;
  v1::AwaitCutRequest request;
  request.set_job(request_.job());
  request.set_id(request_.snapshot_id());
  const absl::Status kept = others_->ForEach(std::min(deadline_, now + kKeepPatience),
                                             [&](int, OtherHosts::Stub& stub, grpc::ClientContext* context) {
                                               v1::AwaitCutResponse response;
                                               return FromGrpc(stub.AwaitCut(context, request, &response));
                                             });
  // Who does not answer now may do so before anything expires; whoever is read from says it anyway.
  return absl::IsNotFound(kept) ? kept : absl::OkStatus();
}

}  // namespace sherd::server
