// Sends values of a snapshot from where they lie in the job's memory, uncopied, and finds out whether they
// were mutated before gRPC had read them. For jobs that nobody trains: there it does not happen.
//
//   LiveSends sends(reader);
//   if (std::optional<grpc::ByteBuffer> message = sends.Make(offset, live, n)) stream->Write(*message);
//   absl::Status whole = sends.Await(go_on);      // before the stream ends with OK
//
// A chunk's checksum is that of the snapshot's bytes, so a receiver finds a mutated chunk damaged and asks
// for it again; Await is for the one in four billion that it does not find. Thread-safe. What gRPC still
// holds lives on after this object, which the job's memory must outlive.
#ifndef SHERD_SERVER_LIVE_SENDS_H_
#define SHERD_SERVER_LIVE_SENDS_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "grpcpp/support/byte_buffer.h"
#include "server/snapshot_reader.h"
#include "server/tensor_stream.h"

namespace sherd::server {

class LiveSends {
 public:
  explicit LiveSends(std::shared_ptr<SnapshotReader> reader);
  ~LiveSends();

  // The Chunk message of `size` bytes at `live`; nullopt if they are not as at the cut any more.
  std::optional<grpc::ByteBuffer> Make(uint64_t offset, const TensorStream::Live& live, uint64_t size);

  // Waits until gRPC has read all that was made. ABORTED: some of it was mutated before. CANCELLED: go_on
  // said no, which is asked a few times a second.
  absl::Status Await(const std::function<bool()>& go_on);

 private:
  struct State;
  struct Sent;
  const std::shared_ptr<State> state_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_LIVE_SENDS_H_
