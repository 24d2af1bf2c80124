// What a server answers the servers of other hosts about its own host's part of a snapshot, and how it reads
// what theirs is.
//
//   absl::StatusOr<std::unique_ptr<HostShares>> shares = SharesOf(context, **reader, deadline);
//   TensorStream stream(memory, reader->get(), shares->get());      // null in a job of one host
//
// Thread-safe.
#ifndef SHERD_SERVER_HOST_PART_H_
#define SHERD_SERVER_HOST_PART_H_

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "server/host_shares.h"
#include "server/service_context.h"
#include "server/snapshot_reader.h"

namespace sherd::server {

// The calls of CheckpointService with these names; errors as there.
absl::Status OpenPoolHere(ServiceContext* context, const v1::OpenPoolRequest& request);
absl::StatusOr<Step> AwaitCutHere(ServiceContext* context, const v1::AwaitCutRequest& request,
                                  absl::Time deadline, const std::function<bool()>& go_on);
// `write` gets one chunk after another; false: the reader has gone.
absl::Status ReadShareHere(ServiceContext* context, const v1::ReadShareRequest& request,
                           const std::function<bool(const v1::Chunk&)>& write);

// For a stream of `reader`'s snapshot. Null in a job of one host.
absl::StatusOr<std::unique_ptr<HostShares>> SharesOf(const ServiceContext* context,
                                                     const SnapshotReader& reader, absl::Time deadline);

}  // namespace sherd::server

#endif  // SHERD_SERVER_HOST_PART_H_
