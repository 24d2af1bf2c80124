#include "server/pull_answer.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/convert.h"
#include "runtime/clock.h"
#include "runtime/crc32c.h"
#include "runtime/doorbell.h"
#include "server/chunk_frame.h"
#include "server/host_part.h"
#include "server/live_sends.h"
#include "server/read_ahead.h"
#include "server/snapshot_reader.h"
#include "server/tensor_stream.h"
#include "server/token_bucket.h"
#include "server/trainers.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;

// Large messages: each costs gRPC as much as copying some 200 KB. But still in a core's cache when they are
// sent.
constexpr uint64_t kChunkBytes = 1 << 20;
// Read and summed at a time: stays in a core's nearer cache.
constexpr uint64_t kPieceBytes = 64 << 10;

absl::Status Send(grpc::ServerContext* call, JobMemory& memory, uint64_t offset, uint64_t rate,
                  const std::shared_ptr<SnapshotReader>& reader, TensorStream& values, PullStream* out) {
  ChunkBuffers buffers(kChunkBytes);
  LiveSends live_sends(reader);
  // What goes on after a break goes the sure way.
  const bool may_send_live = offset == 0 && rate == 0;
  TokenBucket bucket(rate);
  // A slow rate goes in small chunks, so that it is even.
  const uint64_t step = bucket.Piece(kChunkBytes);
  uint64_t filled = offset;
  const auto make = [&]() -> ReadAhead::Result {
    if (filled == values.bytes()) return std::nullopt;
    const uint64_t n = std::min(step, values.bytes() - filled);
    if (may_send_live && !internal::AnyTrainerAttached(memory)) {
      const TensorStream::Live live = values.FindLive(filled, n);
      std::optional<grpc::ByteBuffer> message;
      if (live.data != nullptr) message = live_sends.Make(filled, live, n);
      if (message.has_value()) {
        filled += n;
        return message;
      }
    }
    ChunkBuffers::Buffer buffer = buffers.Take();
    uint32_t crc = 0;
    for (uint64_t at = 0; at < n; at += kPieceBytes) {
      const absl::Span<char> piece(buffer.data() + at, std::min(kPieceBytes, n - at));
      if (absl::Status s = values.Fill(filled + at, piece); !s.ok()) return s;
      crc = runtime::ExtendCrc32c(crc, piece.data(), piece.size());
    }
    filled += n;
    return std::move(buffer).ToMessage(filled - n, n, crc);
  };
  // Two cores are busy with sending and receiving: one more thread would only move the data between them.
  std::optional<ReadAhead> ahead;
  if (runtime::UsableCores() > 2) ahead.emplace(make);
  for (; offset < values.bytes(); offset += step) {
    const ReadAhead::Result message = ahead.has_value() ? ahead->Next() : make();
    if (!message.ok()) return message.status();
    const absl::Time go = runtime::SteadyNow() + bucket.Spend(std::min(step, values.bytes() - offset));
    while (runtime::SteadyNow() < go) {
      if (call->IsCancelled()) return absl::CancelledError("the reader has gone");
      if (absl::Status s = reader->Check(); !s.ok()) return s;
      absl::SleepFor(std::min(go - runtime::SteadyNow(), absl::Milliseconds(50)));
    }
    if (!out->Write(**message)) return absl::CancelledError("the reader has gone");
  }
  return live_sends.Await([&] { return !call->IsCancelled(); });
}

}  // namespace

absl::Status AnswerPull(ServiceContext* context, grpc::ServerContext* call, const v1::PullRequest& request,
                        PullStream* out) {
  const absl::StatusOr<StreamBudget::Place> place = context->reads().Take("reads and pulls");
  if (!place.ok()) return place.status();
  const absl::StatusOr<JobMemory*> memory = context->Memory();
  if (!memory.ok()) return memory.status();
  const absl::StatusOr<DType> dtype = DTypeFromProto(request.dtype(), "dtype", DType::kFloat32);
  if (!dtype.ok()) return dtype.status();
  const uint64_t rate = request.rate_bytes_per_second();
  if (absl::Status s = CheckRate(rate); !s.ok()) return s;
  if (request.snapshot_id() == 0) return absl::InvalidArgumentError("snapshot_id=0: take a snapshot first");
  if (request.tensors().empty()) return absl::InvalidArgumentError("tensors is empty: name what to pull");
  const absl::StatusOr<std::shared_ptr<SnapshotReader>> reader =
      SnapshotReader::Open(*memory, request.snapshot_id());
  if (!reader.ok()) return reader.status();
  const absl::StatusOr<std::unique_ptr<HostShares>> shares = SharesOf(context, **reader, DeadlineOf(*call));
  if (!shares.ok()) return shares.status();
  TensorStream values(*memory, reader->get(), shares->get());
  for (const v1::TensorRef& ref : request.tensors()) {
    const absl::StatusOr<ValueRef> found = FindValues(**memory, ref.name(), PlaneOf(ref));
    if (!found.ok()) return found.status();
    const bool param = found->kind == ValueRef::kPlane && found->plane == 0;
    const DType as = param ? *dtype : DType::kFloat32;
    if (absl::Status s = values.Add(*found, as); !s.ok()) return s;
    if (*shares != nullptr && found->kind == ValueRef::kPlane) (*shares)->Add(ref, {}, ToProto(as));
  }
  if (request.offset() > values.bytes()) {
    return absl::OutOfRangeError(
        absl::StrCat("offset=", request.offset(), " is past the end of ", values.bytes(), " bytes"));
  }
  return Send(call, **memory, request.offset(), rate, *reader, values, out);
}

}  // namespace sherd::server
