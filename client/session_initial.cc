// Session: the values that a job begins with.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "client/session.h"
#include "core/host_map.h"
#include "runtime/clock.h"
#include "runtime/compute_parameters.h"
#include "runtime/doorbell.h"

namespace sherd {

std::vector<BlockRange> Session::InitialBlocks(int unit, BlockRange blocks) const {
  const runtime::HostPlace& place = memory_->place();
  BlockRange mine = blocks;
  if (memory_->IsGathered(unit) && memory_->spec().gather.initial_shares) {
    const BlockRange share = HostShare(memory_->layout().units()[unit].blocks, place.index, memory_->grid());
    mine = {std::max(blocks.begin, share.begin), std::min(blocks.end, share.end)};
  } else if (!must_initialise_) {
    mine = {};
  }
  return mine.begin < mine.end ? std::vector<BlockRange>{mine} : std::vector<BlockRange>{};
}

absl::StatusOr<absl::Span<float>> Session::InitialValues() {
  if (!writes_initial()) return absl::FailedPreconditionError("only rank 0 initialises a job, and only once");
  if (initial_.data() == nullptr) {
    absl::StatusOr<runtime::Segment> s = runtime::Segment::Open(
        *dir_, "plane.param", runtime::Segment::Access::kReadWrite, runtime::SegmentKind::kParameters);
    if (!s.ok()) return s.status();
    initial_ = *std::move(s);
  }
  return absl::MakeSpan(initial_.as<float>(), initial_.size() / 4);
}

absl::Status Session::RoundInitial() {
  const JobSpec& spec = memory_->spec();
  if (spec.compute == DType::kFloat32) return absl::OkStatus();
  absl::StatusOr<absl::Span<float>> values = InitialValues();
  if (!values.ok()) return values.status();
  absl::StatusOr<runtime::Segment> rounded =
      runtime::Segment::Open(*dir_, runtime::JobMemory::kComputeName, runtime::Segment::Access::kReadWrite,
                             runtime::SegmentKind::kParameters);
  if (!rounded.ok()) return rounded.status();
  for (size_t u = 0; u < spec.layout.units().size(); ++u) {
    for (const BlockRange& blocks : InitialBlocks(static_cast<int>(u), spec.layout.units()[u].blocks)) {
      runtime::RoundToCompute(spec, values->data(), blocks, /*updates=*/0, rounded->as<uint16_t>());
    }
  }
  return absl::OkStatus();
}

absl::Status Session::FinishInitialShare() {
  if (!writes_initial()) return absl::FailedPreconditionError("only rank 0 initialises a job, and only once");
  if (!restoring() || restoring_partially()) {  // else there is nothing yet
    if (absl::Status s = RoundInitial(); !s.ok()) return s;
  }
  initial_ = runtime::Segment();
  if (memory_->gather() == nullptr) return absl::OkStatus();
  memory_->gather()->share_written.store(1, std::memory_order_release);
  writes_share_ = false;
  memory_->RingAgent();
  return absl::OkStatus();
}

absl::Status Session::CommitInitial() {
  if (!must_initialise_) return absl::FailedPreconditionError("only rank 0 initialises a job, and only once");
  if (absl::Status s = FinishInitialShare(); !s.ok()) return s;
  if (memory_->gather() != nullptr && memory_->spec().gather.initial_shares) {
    int missing = 0;
    const auto written = [&] {
      for (missing = 1; missing < memory_->place().count; ++missing) {
        const uint32_t said = memory_->gather()->said[missing].load(std::memory_order_acquire);
        if ((said & runtime::GatherPage::kShareWritten) == 0) return false;
      }
      return true;
    };
    const absl::Status all =
        WaitForControl(written, "other hosts have not written their shares of the values");
    if (absl::IsDeadlineExceeded(all)) {
      return absl::DeadlineExceededError(absl::StrCat("host ", missing, ": ", all.message()));
    }
    if (!all.ok()) return all;
  }
  v1::CommitInitialRequest request;
  request.set_job(job_);
  request.set_rank(options_.rank);
  request.set_incarnation(incarnation_);
  request.set_token(rpc::NewToken());
  // A checkpoint takes as long as the disk does.
  const absl::Time deadline = restoring() ? runtime::SteadyNow() + kRestorePatience : Deadline();
  absl::StatusOr<v1::CommitInitialResponse> response = client_.CommitInitial(request, deadline);
  if (!response.ok()) return response.status();
  must_initialise_ = false;
  restored_ = response->restored();
  return absl::OkStatus();
}

absl::Status Session::WaitInitialized() {
  return WaitForControl([&] { return memory_->control().initialized.load(std::memory_order_acquire) != 0; },
                        "rank 0 has not committed the initial values");
}

absl::Status Session::WaitForControl(const std::function<bool()>& so, const std::string& what) {
  runtime::ControlPage& control = memory_->control();
  const absl::Time deadline = restoring() ? runtime::SteadyNow() + kRestorePatience : Deadline();
  for (;;) {
    const uint32_t ticket = control.bell.Listen();
    if (so()) return absl::OkStatus();
    if (control.shutting_down.load(std::memory_order_acquire) != 0) {
      return absl::UnavailableError("the job shut down before rank 0 had committed the initial values");
    }
    if (runtime::SteadyNow() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat(what, " within ", absl::FormatDuration(options_.timeout), "; is it running?"));
    }
    control.bell.Wait(ticket, absl::Milliseconds(100), runtime::SpinPolicy::None());
  }
}

}  // namespace sherd
