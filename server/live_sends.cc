#include "server/live_sends.h"

#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "grpcpp/support/slice.h"
#include "runtime/crc32c.h"
#include "runtime/mutex.h"
#include "server/chunk_frame.h"

namespace sherd::server {

struct LiveSends::State {
  runtime::Mutex mu;
  std::shared_ptr<SnapshotReader> reader ABSL_GUARDED_BY(mu);  // null once nobody asks any more
  runtime::CondVar fewer;
  int held ABSL_GUARDED_BY(mu) = 0;  // by gRPC
  std::optional<uint64_t> mutated ABSL_GUARDED_BY(mu);
};

// One chunk's data, as gRPC holds it.
struct LiveSends::Sent {
  std::shared_ptr<State> state;
  uint64_t offset;
  BlockRange blocks;
  ~Sent() {
    runtime::MutexLock lock(state->mu);
    if (state->reader != nullptr && !state->reader->IsLive(blocks) && !state->mutated.has_value())
      state->mutated = offset;
    --state->held;
    state->fewer.SignalAll();
  }
};

LiveSends::LiveSends(std::shared_ptr<SnapshotReader> reader) : state_(std::make_shared<State>()) {
  runtime::MutexLock lock(state_->mu);
  state_->reader = std::move(reader);
}

LiveSends::~LiveSends() {
  runtime::MutexLock lock(state_->mu);
  state_->reader.reset();
}

std::optional<grpc::ByteBuffer> LiveSends::Make(uint64_t offset, const TensorStream::Live& live,
                                                uint64_t size) {
  const uint32_t crc = runtime::Crc32c(live.data, size);
  {
    runtime::MutexLock lock(state_->mu);
    if (!state_->reader->IsLive(live.blocks)) return std::nullopt;
    ++state_->held;
  }
  // gRPC only reads it.
  const grpc::Slice data(
      const_cast<char*>(live.data), size, [](void* sent) { delete static_cast<Sent*>(sent); },
      new Sent{state_, offset, live.blocks});
  return ChunkMessage(offset, crc, data);
}

absl::Status LiveSends::Await(const std::function<bool()>& go_on) {
  runtime::MutexLock lock(state_->mu);
  while (state_->held > 0) {
    if (!go_on()) return absl::CancelledError("the reader has gone");
    state_->fewer.WaitFor(state_->mu, absl::Milliseconds(50));
  }
  if (state_->mutated.has_value()) {
    return absl::AbortedError(
        absl::StrCat("the bytes from ", *state_->mutated,
                     " on changed while they were sent, as training began: pull again"));
  }
  return absl::OkStatus();
}

}  // namespace sherd::server
