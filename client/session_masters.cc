// Session: parameters as the servers have them.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "client/rpc/pull_stream.h"
#include "client/session.h"
#include "runtime/clock.h"

namespace sherd {
namespace {

constexpr int kMostTensors = 1000;  // of one call
constexpr int kMostSnapshots = 3;
constexpr absl::Duration kReleasePatience = absl::Seconds(5);

// Takes a stream of the tensors [first, end) apart.
absl::Status Fill(rpc::JobClient& client, v1::PullRequest request, const Layout& layout,
                  const std::vector<absl::Span<float>>& tensors, int first, int end, absl::Time deadline,
                  bool* lost) {
  uint64_t total = 0;
  for (int t = first; t < end; ++t) {
    request.add_tensors()->set_name(layout.tensors()[t].spec.name);
    total += static_cast<uint64_t>(layout.tensors()[t].numel) * sizeof(float);
  }
  int at = first;
  uint64_t done = 0;  // bytes of tensor `at`
  const rpc::PullOutcome outcome = rpc::PullBytes(
      client, std::move(request), total,
      [&](uint64_t, absl::string_view bytes) {
        while (!bytes.empty()) {
          const uint64_t size = static_cast<uint64_t>(layout.tensors()[at].numel) * sizeof(float);
          if (done == size) {
            ++at;
            done = 0;
            continue;
          }
          const size_t n = std::min<uint64_t>(bytes.size(), size - done);
          std::memcpy(reinterpret_cast<char*>(tensors[at].data()) + done, bytes.data(), n);
          done += n;
          bytes.remove_prefix(n);
        }
        return absl::OkStatus();
      },
      deadline);
  *lost = outcome.snapshot_lost;
  return outcome.status;
}

}  // namespace

absl::StatusOr<uint64_t> Session::ReadMasters(const std::vector<absl::Span<float>>& tensors) {
  const Layout& layout = memory_->layout();
  const int count = static_cast<int>(layout.tensors().size());
  for (int tries = 1;; ++tries) {
    v1::SnapshotRequest take;
    take.set_job(job_);
    take.set_token(rpc::NewToken());
    take.add_planes("param");
    const absl::StatusOr<v1::SnapshotInfo> snapshot = client_.Snapshot(take, Deadline());
    if (!snapshot.ok()) return snapshot.status();
    const auto release = absl::MakeCleanup([&] {
      v1::ReleaseRequest gone;
      gone.set_job(job_);
      gone.set_id(snapshot->id());
      // Without this the servers release it by themselves, a minute later.
      (void)client_.Release(gone, runtime::SteadyNow() + kReleasePatience);
    });
    v1::PullRequest request;
    request.set_job(job_);
    request.set_snapshot_id(snapshot->id());
    absl::Status status;
    bool lost = false;
    for (int t = 0; t < count && status.ok(); t += kMostTensors) {
      const int end = std::min(count, t + kMostTensors);
      // As long as something comes.
      status = Fill(client_, request, layout, tensors, t, end, absl::InfiniteFuture(), &lost);
    }
    if (status.ok()) return snapshot->step();
    if (!lost || tries == kMostSnapshots) return status;
  }
}

}  // namespace sherd
