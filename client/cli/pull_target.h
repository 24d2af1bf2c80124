// Puts the files of a pull in their places: gets one stream of bytes, makes files of it, and shows them when
// all are whole. Nothing is left of a pull that did not end.
//
//   auto target = PullTarget::Create("out", std::move(plan));
//   (*target)->Write(bytes);           // in order, until all of plan.total_bytes() are there
//   (*target)->Commit();               // now they can be seen
//
// Files of one folder are reserved at the beginning and renamed at the end. Those of a plan with a folder of
// its own, which may be thousands, are made one after another in `.<folder>.partial`, which is renamed at the
// end; what a killed pull left there is removed by the next one.
#ifndef SHERD_CLIENT_CLI_PULL_TARGET_H_
#define SHERD_CLIENT_CLI_PULL_TARGET_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/cli/pull_files.h"
#include "runtime/unique_fd.h"

namespace sherd::cli {

// Thread-compatible.
class PullTarget {
 public:
  // `parent` must exist. Errors of the files' writers; ALREADY_EXISTS if the plan's folder is there;
  // FAILED_PRECONDITION if another pull is writing it. Blocks.
  static absl::StatusOr<std::unique_ptr<PullTarget>> Create(const std::string& parent, PullPlan plan);
  ~PullTarget();
  PullTarget(const PullTarget&) = delete;
  PullTarget& operator=(const PullTarget&) = delete;

  const PullPlan& plan() const { return plan_; }

  // The next bytes of the stream. OUT_OF_RANGE past its end; else the writers' errors. Blocks.
  absl::Status Write(absl::string_view bytes);

  // Shows the files. The paths of what there is now: each file, or the folder; then the index or the like.
  // FAILED_PRECONDITION if bytes are missing; else the writers' errors. Once only. Blocks.
  absl::StatusOr<std::vector<std::string>> Commit();

 private:
  PullTarget(std::string parent, PullPlan plan) : parent_(std::move(parent)), plan_(std::move(plan)) {}

  bool staged() const { return !plan_.folder.empty(); }
  absl::Status MakeStaging();
  absl::Status Open(size_t file);
  // Ends files that have all of their bytes, and opens what comes next.
  absl::Status Advance();
  absl::Status ShowFolder();

  const std::string parent_;
  const PullPlan plan_;
  std::string staging_;                                          // empty unless it is there
  runtime::UniqueFd staging_fd_;                                 // holds its lock
  std::vector<std::unique_ptr<formats::TensorWriter>> writers_;  // of plan_.files; staged: the one in hand
  size_t file_ = 0;                                              // that gets the next bytes
  uint64_t in_file_ = 0;
};

// "folder/name", or the name alone in ".".
std::string JoinPath(const std::string& folder, const std::string& name);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_PULL_TARGET_H_
