#include "client/cli/pull.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/cli/consolidated.h"
#include "client/cli/pull_stream.h"
#include "client/cli/tensor_list.h"
#include "client/cli/text.h"
#include "runtime/formats/checkpoint.h"
#include "runtime/formats/safetensors_file.h"

namespace sherd::cli {
namespace {

constexpr int kMostRestarts = 2;

struct Target {
  std::string folder;
  std::string file;  // of a single one
  std::string stem;  // of several
  bool made_folder = false;
};

absl::StatusOr<Target> FindTarget(const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("PATH is empty; name a file or a folder");
  Target target;
  struct stat info;
  const bool exists = ::stat(path.c_str(), &info) == 0;
  if (absl::EndsWith(path, "/") || (exists && S_ISDIR(info.st_mode))) {
    target.folder = path;
    target.stem = "model";
    target.file = "model.safetensors";
    if (!exists) {
      if (::mkdir(path.c_str(), 0777) != 0) return formats::FileError(errno, "create the folder", path);
      target.made_folder = true;
    }
    return target;
  }
  const size_t slash = path.rfind('/');
  target.folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  target.file = path.substr(slash + 1);
  target.stem = std::string(absl::StripSuffix(target.file, ".safetensors"));
  if (target.stem.empty()) return absl::InvalidArgumentError(absl::StrCat("\"", path, "\" names no file"));
  return target;
}

std::string Join(const std::string& folder, const std::string& name) {
  if (folder == ".") return name;
  return absl::EndsWith(folder, "/") ? absl::StrCat(folder, name) : absl::StrCat(folder, "/", name);
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
  absl::Status Fill(const PullPlan& plan, uint64_t snapshot, bool* lost);
  absl::Status Commit(const PullPlan& plan);
  std::string PathOf(const PullPlan& plan, size_t file) const {
    return Join(target_.folder,
                plan.checkpoint.is_sharded() ? plan.checkpoint.files[file].name : target_.file);
  }

  rpc::JobClient& client_;
  const PullOptions& options_;
  const Target& target_;
  const absl::Time deadline_;
  Progress& progress_;
  std::vector<std::unique_ptr<formats::SafetensorsWriter>> writers_;
  PullResult result_;
};

absl::StatusOr<PullResult> Pull::Run() {
  const absl::Time start = absl::Now();
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
  result_.duration = absl::Now() - start;
  return result_;
}

absl::Status Pull::Once(const TensorList& job, bool* lost) {
  v1::SnapshotRequest request;
  request.set_token(rpc::NewToken());
  request.add_planes("param");
  request.add_planes("buffer");
  if (options_.with_optimizer && !job.tensors.empty()) {
    std::vector<std::string> planes;
    for (const auto& t : job.tensors) {
      if (t.planes_size() > static_cast<int>(planes.size())) planes = {t.planes().begin(), t.planes().end()};
    }
    for (const std::string& plane : planes) {
      if (plane != "param") request.add_planes(plane);
    }
  }
  absl::StatusOr<v1::SnapshotInfo> snapshot = client_.Snapshot(request, deadline_);
  if (!snapshot.ok()) return snapshot.status();
  const auto release = absl::MakeCleanup([&] {
    v1::ReleaseRequest gone;
    gone.set_id(snapshot->id());
    // Without this the servers release it by themselves, a minute later.
    (void)client_.Release(gone, absl::Now() + absl::Seconds(5));
  });
  result_.step = snapshot->step();
  result_.epoch = snapshot->epoch();
  absl::StatusOr<PullPlan> plan =
      PlanPull(job, options_.dtype, options_.with_optimizer, options_.max_shard_bytes, target_.stem,
               {{"format", "pt"},
                {"sherd_step", absl::StrCat(snapshot->step())},
                {"sherd_epoch", absl::StrCat(snapshot->epoch())},
                {"sherd_layout_hash", absl::StrFormat("%016x", snapshot->layout_hash())}});
  if (!plan.ok()) return plan.status();
  // Partial files go when their writers do: before the next ones take their places, and after every error.
  const auto close = absl::MakeCleanup([&] { writers_.clear(); });
  if (absl::Status status = Fill(*plan, snapshot->id(), lost); !status.ok()) return status;
  return Commit(*plan);
}

absl::Status Pull::Fill(const PullPlan& plan, uint64_t snapshot, bool* lost) {
  for (size_t i = 0; i < plan.checkpoint.files.size(); ++i) {
    absl::StatusOr<std::unique_ptr<formats::SafetensorsWriter>> writer =
        formats::SafetensorsWriter::Create(PathOf(plan, i), plan.checkpoint.files[i].plan, {});
    if (!writer.ok()) return writer.status();
    writers_.push_back(*std::move(writer));
  }
  const absl::Time start = absl::Now();
  const uint64_t total = plan.checkpoint.total_bytes;
  uint64_t before = 0;
  for (size_t i = 0; i < writers_.size(); ++i) {
    v1::PullRequest request;
    request.set_snapshot_id(snapshot);
    request.set_dtype(options_.dtype);
    request.set_rate_bytes_per_second(options_.rate);
    for (const v1::TensorRef& ref : plan.refs[i]) *request.add_tensors() = ref;
    const uint64_t bytes = plan.checkpoint.files[i].plan.header.data_bytes;
    const auto sink = [&](uint64_t offset, absl::string_view data) {
      if (progress_.Due()) {
        const uint64_t done = before + offset;
        const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
        progress_.Show(absl::StrFormat("pull step %d: %3.0f%%  %s of %s  %s/s", result_.step,
                                       100.0 * done / total, HumanBytes(done), HumanBytes(total),
                                       HumanBytes(seconds > 0 ? done / seconds : 0)));
      }
      return writers_[i]->WriteData(offset, data);
    };
    PullOutcome outcome = PullBytes(client_, std::move(request), bytes, sink, deadline_);
    result_.resumed += outcome.resumed;
    *lost = outcome.snapshot_lost;
    if (!outcome.status.ok()) return outcome.status;
    before += bytes;
  }
  progress_.Clear();
  return absl::OkStatus();
}

absl::Status Pull::Commit(const PullPlan& plan) {
  result_.files.clear();
  result_.tensors = 0;
  result_.bytes = plan.checkpoint.total_bytes;
  for (size_t i = 0; i < writers_.size(); ++i) {
    if (absl::Status status = writers_[i]->Commit(); !status.ok()) return status;
    result_.files.push_back(PathOf(plan, i));
    result_.tensors += plan.refs[i].size();
  }
  if (!plan.checkpoint.is_sharded()) return absl::OkStatus();
  result_.files.push_back(Join(target_.folder, plan.checkpoint.index_name()));
  return formats::WriteIndex(target_.folder, plan.checkpoint);
}

}  // namespace

absl::StatusOr<PullResult> PullJob(rpc::JobClient& client, const PullOptions& options, absl::Time deadline,
                                   Progress& progress) {
  absl::StatusOr<Target> target = FindTarget(options.path);
  if (!target.ok()) return target.status();
  absl::StatusOr<PullResult> result = Pull(client, options, *target, deadline, progress).Run();
  if (!result.ok() && target->made_folder) ::rmdir(target->folder.c_str());
  return result;
}

}  // namespace sherd::cli
