#include "client/cli/transfer.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/json_text.h"
#include "client/cli/push.h"
#include "client/cli/text.h"
#include "nlohmann/json.hpp"
#include "runtime/job_dir.h"

namespace sherd::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string RateText(uint64_t bytes, absl::Duration duration) {
  return absl::StrCat(HumanBytes(bytes / std::max(absl::ToDoubleSeconds(duration), 1e-3)), "/s");
}

}  // namespace

absl::Status PullCommand(Context& context, const PullOptions& options) {
  absl::StatusOr<PullResult> result = PullJob(context.client, options, context.deadline, context.progress);
  if (!result.ok()) return result.status();
  if (context.json) {
    context.out << Dump({{"files", result->files},
                         {"step", result->step},
                         {"epoch", result->epoch},
                         {"tensors", result->tensors},
                         {"bytes", result->bytes},
                         {"seconds", absl::ToDoubleSeconds(result->duration)},
                         {"resumed", result->resumed},
                         {"restarted", result->restarted}});
    return absl::OkStatus();
  }
  std::string what = result->files.back();
  if (result->files.size() > 1) absl::StrAppend(&what, " and ", result->files.size() - 1, " files");
  context.out << absl::StrFormat("%s: step %d, %d tensors, %s in %.2f s (%s)", what, result->step,
                                 result->tensors, HumanBytes(result->bytes),
                                 absl::ToDoubleSeconds(result->duration),
                                 RateText(result->bytes, result->duration));
  if (result->resumed > 0) context.out << ", resumed " << result->resumed << " times";
  context.out << "\n";
  return absl::OkStatus();
}

absl::Status PushCommand(Context& context, const std::string& path, const PushChoice& choice) {
  absl::StatusOr<PushResult> result =
      PushJob(context.client, path, choice, context.deadline, context.progress);
  if (!result.ok()) return result.status();
  if (context.json) {
    context.out << Dump({{"file", path},
                         {"step", result->step},
                         {"tensors", result->tensors},
                         {"bytes", result->bytes},
                         {"skipped_buffers", result->skipped_buffers},
                         {"missing", result->missing},
                         {"left_over", result->left_over},
                         {"seconds", absl::ToDoubleSeconds(result->duration)}});
    return absl::OkStatus();
  }
  context.out << absl::StrFormat("%s: %d tensors, %s stored after step %d in %.2f s", path, result->tensors,
                                 HumanBytes(result->bytes), result->step,
                                 absl::ToDoubleSeconds(result->duration));
  if (result->skipped_buffers > 0) {
    context.out << "; " << result->skipped_buffers
                << " buffers left out (rank 0 hands them over at each step)";
  }
  if (result->missing + result->left_over > 0) {
    context.out << "; only the job has " << result->missing << " tensors, only the file "
                << result->left_over;
  }
  context.out << "\n";
  return absl::OkStatus();
}

absl::Status GcCommand(const std::string& shm_root, bool json, std::ostream& out) {
  absl::StatusOr<std::vector<runtime::JobDir::Removed>> removed = runtime::JobDir::Gc(shm_root);
  if (!removed.ok()) return removed.status();
  int64_t bytes = 0;
  Json list = Json::array();
  for (const runtime::JobDir::Removed& r : *removed) {
    bytes += r.bytes;
    list.push_back({{"path", r.path}, {"bytes", r.bytes}});
    if (!json) out << "removed " << r.path << " (" << HumanBytes(r.bytes) << ")\n";
  }
  if (json) {
    out << Dump({{"removed", std::move(list)}, {"bytes", bytes}});
  } else if (removed->empty()) {
    out << "nothing to remove\n";
  }
  return absl::OkStatus();
}

}  // namespace sherd::cli
