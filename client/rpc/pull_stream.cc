#include "client/rpc/pull_stream.h"

#include "absl/strings/str_cat.h"
#include "runtime/crc32c.h"

namespace sherd::rpc {
namespace {

constexpr int kMostDamage = 3;

absl::Status Check(const v1::Chunk& chunk, uint64_t done, uint64_t total) {
  const uint64_t size = chunk.data().size();
  if (chunk.offset() != done || size == 0 || size > total - done) {
    return absl::DataLossError(absl::StrCat("the server sent bytes ", chunk.offset(), " to ",
                                            chunk.offset() + size, " of ", total, " where byte ", done,
                                            " was due"));
  }
  if (runtime::Crc32c(chunk.data()) != chunk.crc32c()) {
    return absl::DataLossError(
        absl::StrCat("the crc32c of bytes ", done, " to ", done + size, " does not match"));
  }
  return absl::OkStatus();
}

}  // namespace

PullOutcome PullBytes(JobClient& client, v1::PullRequest request, uint64_t total,
                      absl::FunctionRef<absl::Status(uint64_t offset, absl::string_view bytes)> sink,
                      absl::Time deadline) {
  PullOutcome outcome;
  uint64_t done = 0;
  int attempts = 0;
  absl::Status sunk;
  const auto attempt = [&] {
    if (attempts++ > 0) ++outcome.resumed;
    request.set_offset(done);
    absl::Status status = client.Pull(request, deadline, [&](v1::Chunk& chunk) {
      if (absl::Status good = Check(chunk, done, total); !good.ok()) return good;
      sunk = sink(done, chunk.data());
      if (sunk.ok()) done += chunk.data().size();
      return sunk;
    });
    if (!sunk.ok()) return absl::OkStatus();
    // The server's last word: what was sent, and passed for whole here, is not of the snapshot.
    if (absl::IsAborted(status)) return status;
    if (done == total) return absl::OkStatus();
    if (status.ok()) {
      return absl::DataLossError(absl::StrCat("the stream ended after ", done, " of ", total, " bytes"));
    }
    return status;
  };
  uint64_t damaged_at = 0;
  int damage = 0;
  while (sunk.ok() && done < total) {
    outcome.status = client.RetryUnavailable(deadline, attempt);
    if (outcome.status.ok()) continue;
    if (outcome.status.code() != absl::StatusCode::kDataLoss) {
      outcome.snapshot_lost = absl::IsNotFound(outcome.status) || absl::IsResourceExhausted(outcome.status) ||
                              absl::IsAborted(outcome.status);
      return outcome;
    }
    damage = done == damaged_at ? damage + 1 : 1;
    damaged_at = done;
    if (damage == kMostDamage) return outcome;
  }
  outcome.status = sunk;
  return outcome;
}

}  // namespace sherd::rpc
