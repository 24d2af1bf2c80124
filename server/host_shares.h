// What other hosts own of a snapshot's values, as streams from a server of each (server/tensor_stream.h).
//
//   HostShares shares(&others, job, snapshot, step, idle_timeout, deadline);
//   shares.Add(tensor, {}, dtype);                   // for each item of planes that goes to the stream
//   TensorStream stream(&memory, &reader, &shares);
//
// Each host's share is read ahead on a thread of its own, a few MiB far. Thread-compatible.
#ifndef SHERD_SERVER_HOST_SHARES_H_
#define SHERD_SERVER_HOST_SHARES_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "runtime/clock.h"
#include "server/other_hosts.h"
#include "server/snapshot_reader.h"
#include "server/tensor_stream.h"

namespace sherd::server {

class HostShares final : public OtherShares {
 public:
  // `others` is borrowed. `idle`: the snapshot's idle_timeout.
  HostShares(const OtherHosts* others, const std::string& job, const SnapshotReader& reader,
             absl::Time deadline);
  // Ends the streams.
  ~HostShares() override;

  // Before the first Begin.
  void Add(const v1::TensorRef& tensor, const google::protobuf::RepeatedPtrField<v1::SliceDimension>& slice,
           v1::DType dtype);

  void Begin(int host, uint64_t offset) override;
  // Also what the other host answers: NOT_FOUND, RESOURCE_EXHAUSTED.
  absl::Status Read(int host, uint64_t offset, absl::Span<char> out) override;
  absl::Status KeepAlive() override;

 private:
  class Stream;

  const OtherHosts* const others_;
  v1::ReadShareRequest request_;
  const absl::Duration keep_every_;
  const absl::Time deadline_;
  absl::Time kept_ = runtime::SteadyNow();
  std::map<int, std::unique_ptr<Stream>> streams_;  // by host
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_HOST_SHARES_H_
