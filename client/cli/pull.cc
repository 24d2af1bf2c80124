#include "client/cli/pull.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <set>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "client/cli/pull_plan.h"
#include "client/cli/pull_target.h"
#include "client/cli/tensor_list.h"
#include "client/cli/text.h"
#include "client/rpc/pull_stream.h"
#include "runtime/clock.h"
#include "runtime/formats/atomic_file.h"

namespace sherd::cli {
namespace {

constexpr int kMostRestarts = 2;
// Of several files in one call; a file with more has a call of its own.
constexpr int kMostTensors = 1000;

struct Target {
  std::string folder;
  std::string file;  // of a single one; empty: the folder's files have names of their own
  std::string stem;  // of those names
  bool made_folder = false;
};

absl::StatusOr<Target> FindTarget(const std::string& path, PullFormat format) {
  if (path.empty()) return absl::InvalidArgumentError("PATH is empty; name a file or a folder");
  Target target;
  struct stat info;
  const bool exists = ::stat(path.c_str(), &info) == 0;
  if (absl::EndsWith(path, "/") || (exists && S_ISDIR(info.st_mode)) || format == PullFormat::kDeepSpeed) {
    target.folder = path;
    target.stem = "model";
    if (!exists) {
      if (::mkdir(path.c_str(), 0777) != 0) return formats::FileError(errno, "create the folder", path);
      target.made_folder = true;
    } else if (!S_ISDIR(info.st_mode)) {
      return absl::InvalidArgumentError(absl::StrCat(path, " is no folder; --format deepspeed writes one"));
    }
    return target;
  }
  const size_t slash = path.rfind('/');
  target.folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  target.file = path.substr(slash + 1);
  target.stem = std::string(absl::StripSuffix(target.file, ".safetensors"));
  return target;
}

class Pull {
 public:
  Pull(rpc::JobClient& client, const PullOptions& options, const Target& target, absl::Time deadline,
       Progress& progress)
      : client_(client), options_(options), target_(target), deadline_(deadline), progress_(progress) {}

  absl::StatusOr<PullResult> Run();

 private:
  // One snapshot's worth. `lost`: another may do.
  absl::Status Once(const TensorList& job, bool* lost);
  absl::Status Fill(uint64_t snapshot, PullTarget& target, bool* lost);
  void Show(uint64_t done, uint64_t total, absl::Time start);

  rpc::JobClient& client_;
  const PullOptions& options_;
  const Target& target_;
  const absl::Time deadline_;
  Progress& progress_;
  PullResult result_;
};

absl::StatusOr<PullResult> Pull::Run() {
  const absl::Time start = runtime::SteadyNow();
  absl::StatusOr<TensorList> job = ListAll(client_, "", deadline_);
  if (!job.ok()) return job.status();
  for (;;) {
    bool lost = false;
    absl::Status status = Once(*job, &lost);
    if (status.ok()) break;
    if (!lost || result_.restarted == kMostRestarts) return status;
    ++result_.restarted;
    progress_.Note(
        absl::StrCat("the snapshot was lost (", status.message(), "); starting over with a new one"));
  }
  result_.duration = runtime::SteadyNow() - start;
  return result_;
}

absl::Status Pull::Once(const TensorList& job, bool* lost) {
  v1::SnapshotRequest request;
  request.set_token(rpc::NewToken());
  request.add_planes("param");
  request.add_planes("buffer");
  const bool with_optimizer = options_.with_optimizer || options_.format == PullFormat::kDeepSpeed;
  // Tensors may differ in their planes.
  std::set<std::string> planes = {"param", "buffer"};
  for (const auto& t : job.tensors) {
    for (const std::string& plane : t.planes()) {
      if (with_optimizer && planes.insert(plane).second) request.add_planes(plane);
    }
  }
  absl::StatusOr<v1::SnapshotInfo> snapshot = client_.Snapshot(request, deadline_);
  if (!snapshot.ok()) return snapshot.status();
  const auto release = absl::MakeCleanup([&] {
    v1::ReleaseRequest gone;
    gone.set_id(snapshot->id());
    // Without this the servers release it by themselves, a minute later.
    (void)client_.Release(gone, runtime::SteadyNow() + absl::Seconds(5));
  });
  result_.step = snapshot->step();
  result_.epoch = snapshot->epoch();
  PullWish wish;
  wish.format = options_.format;
  wish.dtype = options_.dtype;
  wish.with_optimizer = with_optimizer;
  wish.max_file_bytes = options_.max_shard_bytes;
  wish.stem = target_.stem;
  wish.step = snapshot->step();
  wish.epoch = snapshot->epoch();
  wish.layout_hash = snapshot->layout_hash();
  absl::StatusOr<PullPlan> plan = PlanPull(job, wish);
  if (!plan.ok()) return plan.status();
  if (plan->files.size() == 1 && !target_.file.empty()) plan->files[0].name = target_.file;
  // Partial files go with it: before the next ones take their places, and after every error.
  absl::StatusOr<std::unique_ptr<PullTarget>> target = PullTarget::Create(target_.folder, *std::move(plan));
  if (!target.ok()) return target.status();
  if (absl::Status status = Fill(snapshot->id(), **target, lost); !status.ok()) return status;
  absl::StatusOr<std::vector<std::string>> files = (*target)->Commit();
  if (!files.ok()) return files.status();
  result_.files = *std::move(files);
  result_.tensors = (*target)->plan().tensors();
  result_.bytes = (*target)->plan().total_bytes();
  return absl::OkStatus();
}

void Pull::Show(uint64_t done, uint64_t total, absl::Time start) {
  if (!progress_.Due()) return;
  const double seconds = absl::ToDoubleSeconds(runtime::SteadyNow() - start);
  progress_.Show(absl::StrFormat("pull step %d: %3.0f%%  %s of %s  %s/s", result_.step, 100.0 * done / total,
                                 HumanBytes(done), HumanBytes(total),
                                 HumanBytes(seconds > 0 ? done / seconds : 0)));
}

// One call for each file, or for many small ones.
absl::Status Pull::Fill(uint64_t snapshot, PullTarget& target, bool* lost) {
  const absl::Time start = runtime::SteadyNow();
  const std::vector<PullFile>& files = target.plan().files;
  const uint64_t total = target.plan().total_bytes();
  uint64_t before = 0;
  for (size_t i = 0; i < files.size();) {
    v1::PullRequest request;
    request.set_snapshot_id(snapshot);
    request.set_dtype(options_.dtype);
    request.set_rate_bytes_per_second(options_.rate);
    uint64_t bytes = 0;
    do {
      for (const v1::TensorRef& ref : files[i].refs) *request.add_tensors() = ref;
      bytes += files[i].data_bytes;
      ++i;
    } while (i < files.size() &&
             request.tensors_size() + static_cast<int>(files[i].refs.size()) <= kMostTensors);
    if (request.tensors().empty()) continue;
    const auto sink = [&](uint64_t offset, absl::string_view data) {
      Show(before + offset, total, start);
      return target.Write(data);
    };
    rpc::PullOutcome outcome = rpc::PullBytes(client_, std::move(request), bytes, sink, deadline_);
    result_.resumed += outcome.resumed;
    *lost = outcome.snapshot_lost;
    if (!outcome.status.ok()) return outcome.status;
    before += bytes;
  }
  progress_.Clear();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PullResult> PullJob(rpc::JobClient& client, const PullOptions& options, absl::Time deadline,
                                   Progress& progress) {
  absl::StatusOr<Target> target = FindTarget(options.path, options.format);
  if (!target.ok()) return target.status();
  absl::StatusOr<PullResult> result = Pull(client, options, *target, deadline, progress).Run();
  if (!result.ok() && target->made_folder) ::rmdir(target->folder.c_str());
  return result;
}

}  // namespace sherd::cli
