// A checkpoint that the servers are writing while training goes on. Torch-free.
//
//   std::shared_ptr<PendingSave> save = PendingSave::Start(&client, job, options, /*after_step=*/40);
//   save->WaitCut();                   // before step 40's record: from here on its state is safe
//   ...                                     // train
//   absl::StatusOr<SavedAs> saved = save->Wait();
//
// Thread-safe.
#ifndef SHERD_CLIENT_PENDING_SAVE_H_
#define SHERD_CLIENT_PENDING_SAVE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/rpc/job_client.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "runtime/mutex.h"

namespace sherd {

struct SaveOptions {
  std::string directory;               // made if only its last component is missing
  std::string tag;                     // empty: "step-<step>"
  int keep = 0;                        // checkpoints to keep there, this one included; 0: all
  uint64_t rate_bytes_per_second = 0;  // most that all servers write in a second; 0: no limit
};

struct SavedAs {
  std::string path, tag;
  uint64_t step = 0;
  int64_t bytes = 0;
  absl::Duration duration;           // from the cut on
  std::vector<std::string> removed;  // tags
};

class PendingSave {
 public:
  // `after_step` 0: the state as it is between two steps. `client` is borrowed until Wait has returned.
  static std::shared_ptr<PendingSave> Start(rpc::JobClient* client, const std::string& job,
                                            const SaveOptions& options, uint64_t after_step);
  // Waits for the end.
  ~PendingSave();

  // Until training may go on: the state to be saved is cut, or its cut cannot be missed. What went wrong
  // else.
  absl::Status WaitCut();
  // The step that is saved. REQUIRES: WaitCut() was OK.
  uint64_t step() const;

  bool done() const;
  // Until the checkpoint is durable and `latest` names it, or what prevented that: errors of
  // CheckpointService.Save.
  absl::StatusOr<SavedAs> Wait();

 private:
  PendingSave() = default;
  void Run(rpc::JobClient* client, const v1::SaveRequest& request);

  mutable runtime::Mutex mu_;
  mutable runtime::CondVar changed_;
  std::optional<v1::SaveProgress::Cut> cut_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::StatusOr<SavedAs>> result_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

// The message for options. INVALID_ARGUMENT: no directory. A relative one is of this process.
absl::StatusOr<v1::SaveRequest> ToSaveRequest(const std::string& job, const SaveOptions& options,
                                              uint64_t after_step);
// `path` as servers, which have other working directories, can use it.
std::string AbsolutePath(const std::string& path);

}  // namespace sherd

#endif  // SHERD_CLIENT_PENDING_SAVE_H_
