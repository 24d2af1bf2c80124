#include "server/host_part.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/convert.h"
#include "runtime/crc32c.h"
#include "server/snapshot_table.h"
#include "server/tensor_stream.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;

constexpr uint64_t kChunkBytes = 1 << 20;

}  // namespace

absl::Status OpenPoolHere(ServiceContext* context, const v1::OpenPoolRequest& request) {
  const absl::StatusOr<JobMemory*> memory = context->Memory();
  if (!memory.ok()) return memory.status();
  absl::Status s = CheckToken(request.token());
  if (s.ok() && request.id() == 0) s = absl::InvalidArgumentError("id is 0");
  const uint64_t planes = SnapshotPool::AllPlanes(**memory);
  if (s.ok() && ((request.plane_mask() & ~SnapshotPool::kTrainerState & ~planes) != 0 ||
                 SnapshotPool::PlanesIn(request.plane_mask()) == 0)) {
    s = absl::InvalidArgumentError(
        absl::StrCat("plane_mask=", absl::Hex(request.plane_mask()), " names planes this job has not"));
  }
  if (s.ok()) s = CheckInRange("pool_blocks", request.pool_blocks(), 1, (*memory)->layout().total_blocks());
  if (!s.ok()) return s;
  const absl::StatusOr<absl::Duration> idle =
      DurationFromProto(request.has_idle_timeout() ? &request.idle_timeout() : nullptr, "idle_timeout",
                        absl::Seconds(60), absl::Seconds(1), absl::Hours(1));
  if (!idle.ok()) return idle.status();
  PoolOrder order;
  order.id = request.id();
  order.token = request.token();
  order.plane_mask = request.plane_mask();
  order.pool_blocks = request.pool_blocks();
  order.wait_when_full = request.on_slow_reader() == v1::ON_SLOW_READER_WAIT;
  order.after_step = Step(request.after_step());
  order.idle_timeout = *idle;
  return OpenPool(**memory, order);
}

absl::StatusOr<Step> AwaitCutHere(ServiceContext* context, const v1::AwaitCutRequest& request,
                                  absl::Time deadline, const std::function<bool()>& go_on) {
  const absl::StatusOr<JobMemory*> memory = context->Memory();
  if (!memory.ok()) return memory.status();
  return AwaitCut(**memory, request.id(), deadline, [&] {
    return go_on() ? absl::OkStatus() : absl::CancelledError("whoever waited has gone");
  });
}

absl::Status ReadShareHere(ServiceContext* context, const v1::ReadShareRequest& request,
                           const std::function<bool(const v1::Chunk&)>& write) {
  const absl::StatusOr<StreamBudget::Place> place = context->reads().Take("reads and pulls");
  if (!place.ok()) return place.status();
  const absl::StatusOr<JobMemory*> memory = context->Memory();
  if (!memory.ok()) return memory.status();
  const absl::StatusOr<std::shared_ptr<SnapshotReader>> reader =
      SnapshotReader::OpenOfStep(*memory, request.snapshot_id(), request.step());
  if (!reader.ok()) return reader.status();
  TensorStream share = TensorStream::OwnShare(*memory, reader->get());
  for (const v1::ReadShareRequest::Item& item : request.items()) {
    const absl::StatusOr<ValueRef> values =
        FindValues(**memory, item.tensor().name(), PlaneOf(item.tensor()));
    if (!values.ok()) return values.status();
    const absl::StatusOr<Slice> slice = SliceFromProto(item.slice(), values->shape);
    if (!slice.ok()) return slice.status();
    const absl::StatusOr<DType> dtype = DTypeFromProto(item.dtype(), "dtype", DType::kFloat32);
    if (!dtype.ok()) return dtype.status();
    if (absl::Status s = share.Add(*values, *slice, *dtype); !s.ok()) return s;
  }
  if (request.offset() > share.bytes()) {
    return absl::OutOfRangeError(
        absl::StrCat("offset=", request.offset(), " is past the end of ", share.bytes(), " bytes"));
  }
  v1::Chunk chunk;
  for (uint64_t at = request.offset(); at < share.bytes();) {
    std::string* const data = chunk.mutable_data();
    data->resize(std::min(kChunkBytes, share.bytes() - at));
    if (absl::Status s = share.Fill(at, absl::MakeSpan(&(*data)[0], data->size())); !s.ok()) return s;
    chunk.set_offset(at);
    chunk.set_crc32c(runtime::Crc32c(*data));
    at += data->size();
    if (!write(chunk)) return absl::CancelledError("the reader has gone");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<HostShares>> SharesOf(const ServiceContext* context,
                                                     const SnapshotReader& reader, absl::Time deadline) {
  const absl::StatusOr<Node*> node = context->node();
  if (!node.ok()) return node.status();
  if ((*node)->others() == nullptr) return std::unique_ptr<HostShares>();
  return std::make_unique<HostShares>((*node)->others(), context->job(), reader, deadline);
}

}  // namespace sherd::server
