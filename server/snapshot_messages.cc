#include "server/snapshot_messages.h"

#include <optional>
#include <string>

#include "proto/convert.h"
#include "server/tensor_stream.h"

namespace sherd::server {

using runtime::JobMemory;

void FillInfo(const JobMemory& memory, const SnapshotState& state, v1::SnapshotInfo* out) {
  out->set_id(state.id);
  out->set_step(state.step.value());
  out->set_epoch(memory.control().epoch.load());
  for (int p = 0; p < memory.planes(); ++p) {
    if (state.plane_mask >> p & 1) out->add_planes(memory.plane_name(p));
  }
  if (!memory.spec().buffers.empty()) out->add_planes("buffer");
  out->set_pool_bytes(state.pool_bytes);
  out->set_pool_used_bytes(state.pool_used_bytes);
  out->set_on_slow_reader(state.wait_when_full ? v1::ON_SLOW_READER_WAIT : v1::ON_SLOW_READER_FAIL);
  ToProto(state.idle_timeout, out->mutable_idle_timeout());
  out->set_overflowed(state.overflowed);
  out->set_layout_hash(memory.layout().hash());
}

absl::StatusOr<SnapshotOptions> OptionsFrom(const JobMemory& memory, const v1::SnapshotRequest& request) {
  SnapshotOptions options;
  options.token = request.token();
  options.plane_mask = request.planes().empty() ? 1 : 0;
  for (const std::string& name : request.planes()) {
    const std::optional<int> plane = FindPlane(memory, name);
    if (!plane.has_value()) return FindValues(memory, "", name).status();
    // Buffers and update counts are small: every snapshot has them.
    if (*plane >= 0) options.plane_mask |= uint64_t{1} << *plane;
  }
  if (options.plane_mask == 0) options.plane_mask = 1;
  if (absl::Status s = CheckInRange("pool_bytes", request.pool_bytes(), 0, int64_t{1} << 46); !s.ok())
    return s;
  options.pool_bytes = request.pool_bytes();
  if (absl::Status s = CheckInRange("on_slow_reader", request.on_slow_reader(), 0, v1::ON_SLOW_READER_WAIT);
      !s.ok())
    return s;
  options.wait_when_full = request.on_slow_reader() == v1::ON_SLOW_READER_WAIT;
  absl::StatusOr<absl::Duration> idle =
      DurationFromProto(request.has_idle_timeout() ? &request.idle_timeout() : nullptr, "idle_timeout",
                        absl::Seconds(60), absl::Seconds(1), absl::Hours(1));
  if (!idle.ok()) return idle.status();
  options.idle_timeout = *idle;
  return options;
}

}  // namespace sherd::server
