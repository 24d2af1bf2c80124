// Makes the next messages of a stream on a thread of its own while the present one is being sent.
//
//   ReadAhead messages([&]() -> absl::StatusOr<std::optional<grpc::ByteBuffer>> { ... });   // null: the end
//   for (;;) {
//     absl::StatusOr<std::optional<grpc::ByteBuffer>> message = messages.Next();
//     if (!message.ok() || !message->has_value()) break;
//     stream->Write(**message);
//   }
//
// Filling a message and writing it take about equally long, each at the speed of memory on one core: together
// they take the time of one. For one reader; the destructor waits for the call of `make` under way.
#ifndef SHERD_SERVER_READ_AHEAD_H_
#define SHERD_SERVER_READ_AHEAD_H_

#include <deque>
#include <functional>
#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "grpcpp/support/byte_buffer.h"
#include "runtime/mutex.h"

namespace sherd::server {

class ReadAhead {
 public:
  // A message, null after the last, or an error, which is also the last.
  using Result = absl::StatusOr<std::optional<grpc::ByteBuffer>>;

  // `make` is called on the thread only, not again after it returned null or an error.
  explicit ReadAhead(std::function<Result()> make);
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // What `make` returned, in order; waits for it. Not to be called again after null or an error.
  Result Next();

 private:
  void Run();

  const std::function<Result()> make_;
  runtime::Mutex mu_;
  runtime::CondVar changed_;
  std::deque<Result> ready_ ABSL_GUARDED_BY(mu_);
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_READ_AHEAD_H_
