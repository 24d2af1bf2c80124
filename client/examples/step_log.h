// A file with one JSON object per training step, for programs that compare and draw runs.
//
//   absl::StatusOr<StepLog> log = StepLog::Open("run.json", /*first_step=*/1);
//   log->Write({.step = 1, .loss = 5.54, ...});
//
//   {"step":1,"loss":5.54,"grad_norm":1.2,"tokens":512,"epoch":1,"world_size":2,"step_ms":31.5}
#ifndef SHERD_CLIENT_EXAMPLES_STEP_LOG_H_
#define SHERD_CLIENT_EXAMPLES_STEP_LOG_H_

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sherd::examples {

// One finished step, as logged and shown.
struct StepRecord {
  uint64_t step = 0;     // 1 is the first update
  double loss = 0;       // mean cross entropy over the global batch, in nats a byte, before the update
  double grad_norm = 0;  // of the mean gradient, before clipping
  uint64_t tokens = 0;   // trained on since step 1, this step included
  uint64_t epoch = 0;    // of membership
  int world_size = 0;
  double lr = 0;          // of the first parameter group
  double step_ms = 0;     // wall time since the previous step ended
  double loss_scale = 1;  // written only when it is another
  bool skipped = false;   // no update was made: the gradient was not finite. Written only when true
  // Of stage 3, as in StepInfo; not written where nothing was gathered.
  int64_t gathers = 0, prefetch_hits = 0, peak_parameter_bytes = 0;
};

// Thread-compatible. Movable.
class StepLog {
 public:
  // Opens `path` to go on with `first_step`: whole lines of earlier steps stay; the rest (later steps, a line
  // torn by a crash, anything that is not such a line) is cut off. So a restarted trainer continues its file
  // without doubling lines, and a fresh run (first_step 1) starts an empty one. A trainer killed between an
  // update and its line leaves that one step out. kNotFound, kPermissionDenied, ... name the path.
  static absl::StatusOr<StepLog> Open(const std::string& path, uint64_t first_step);

  // Appends one line and hands it to the system, so a crash of this process loses nothing. Not a number and
  // infinity are written as null. Errors (a full disk) name the path; the line may then be torn.
  absl::Status Write(const StepRecord& record);

 private:
  StepLog(std::string path, FILE* file);

  std::string path_;
  std::unique_ptr<FILE, int (*)(FILE*)> file_;
};

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_STEP_LOG_H_
