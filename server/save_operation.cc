#include "server/save_operation.h"

#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "proto/convert.h"
#include "proto/sherd/v1/checkpoint.grpc.pb.h"
#include "proto/status.h"
#include "runtime/clock.h"
#include "runtime/formats/atomic_file.h"
#include "server/checkpoint_dir.h"
#include "server/checkpoint_manifest.h"
#include "server/checkpoint_part.h"
#include "server/slot_crew.h"
#include "server/snapshot_reader.h"
#include "server/token_bucket.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;

constexpr int kMostKept = 1000000;

absl::Status CheckRequest(const v1::SaveRequest& request) {
  if (!request.tag().empty()) {
    if (absl::Status s = CheckTag(request.tag()); !s.ok()) return s;
  }
  if (absl::Status s = CheckInRange("keep", request.keep(), 0, kMostKept); !s.ok()) return s;
  return CheckRate(request.rate_bytes_per_second());
}

// What a checkpoint of `step` is called.
std::string TagOf(const v1::SaveRequest& request, uint64_t step) {
  return request.tag().empty() ? absl::StrCat("step-", step) : request.tag();
}

// A part of several hosts: it is this one's own, and goes where the first host has made room.
absl::Status CheckHostPart(const runtime::JobMemory& memory, const v1::WritePartRequest& request) {
  const runtime::HostPlace& place = memory.place();
  if (request.slot() != place.index || request.servers() != memory.grid().group) {
    return absl::InvalidArgumentError(absl::StrCat("part ", request.slot(), " of ", request.servers(),
                                                   " is not that of host ", place.index, " of ",
                                                   memory.grid().group, ", which alone is here"));
  }
  const std::string staging = request.path().substr(0, request.path().rfind('/'));
  struct stat there;
  if (stat(staging.c_str(), &there) == 0 || (errno != ENOENT && errno != ENOTDIR)) return absl::OkStatus();
  const std::string directory = staging.substr(0, staging.rfind('/'));
  return absl::FailedPreconditionError(
      absl::StrCat("host ", place.index, " does not see what host 0 writes into ", directory,
                   ": save into a directory of a file system that all hosts share, with one path on all"));
}

// One save, from the cut on.
class Save {
 public:
  Save(ServiceContext* context, Coordinator* coordinator, JobMemory* memory, const v1::SaveRequest& request,
       absl::Time deadline, const std::function<bool(const v1::SaveProgress&)>& tell)
      : context_(context),
        coordinator_(coordinator),
        memory_(memory),
        request_(request),
        deadline_(deadline),
        tell_(tell) {}

  absl::StatusOr<v1::SaveProgress::Result> Run();

 private:
  absl::StatusOr<SnapshotState> Cut();
  void TellCut(Step step);
  absl::Status WriteParts(const CheckpointDir& dir, SnapshotReader& reader);
  absl::Status WriteRest(const CheckpointDir& dir, SnapshotReader& reader);
  v1::WritePartRequest PartRequest(const CheckpointDir& dir, Slot slot, int attempt) const;
  absl::Status Settle(const CheckpointDir& dir) const;
  static std::string PartName(Slot slot, int servers, int attempt);
  void TakePart(Slot slot, int attempt, const v1::PartFile& file);
  bool TellWritten();
  bool GoesOn() const;

  ServiceContext* const context_;
  Coordinator* const coordinator_;
  JobMemory* const memory_;
  const v1::SaveRequest& request_;
  const absl::Time deadline_;
  const std::function<bool(const v1::SaveProgress&)>& tell_;

  uint64_t snapshot_ = 0;
  int servers_ = 1;    // parts: of as many slots, or of hosts if there are several
  int64_t bytes_ = 0;  // of all parts
  bool gone_ = false;  // the caller
  bool told_ = false;  // a trainer, that it may publish its step
  v1::CheckpointManifest manifest_;
  std::vector<std::atomic<int64_t>> written_;
  SlotCrew* crew_ = nullptr;
};

std::string Save::PartName(Slot slot, int servers, int attempt) {
  // One that was given up on may still be written to: its name is not used again.
  return absl::StrFormat("part-%05d-of-%05d%s.safetensors", slot.value(), servers,
                         attempt == 0 ? "" : absl::StrCat("-", attempt));
}

v1::WritePartRequest Save::PartRequest(const CheckpointDir& dir, Slot slot, int attempt) const {
  v1::WritePartRequest request;
  request.set_job(context_->job());
  request.set_snapshot_id(snapshot_);
  request.set_path(absl::StrCat(dir.staging(), "/", PartName(slot, servers_, attempt)));
  request.set_slot(slot.value());
  request.set_servers(servers_);
  // Each server its share.
  if (const uint64_t rate = request_.rate_bytes_per_second(); rate != 0)
    request.set_rate_bytes_per_second(std::max<uint64_t>(1, rate / servers_));
  return request;
}

void Save::TellCut(Step step) {
  v1::SaveProgress message;
  v1::SaveProgress::Cut* cut = message.mutable_cut();
  cut->set_step(step.value());
  cut->set_epoch(memory_->control().epoch.load());
  cut->set_tag(TagOf(request_, step.value()));
  cut->set_bytes(bytes_);
  gone_ |= !tell_(message);
}

bool Save::TellWritten() {
  v1::SaveProgress message;
  int64_t sum = 0;
  for (const std::atomic<int64_t>& w : written_) sum += w.load(std::memory_order_relaxed);
  message.set_written_bytes(sum);
  gone_ |= !tell_(message);
  return GoesOn();
}

// A save whose caller has gone is given up; but not one that was asked for with a step, from when the trainer
// was told that its cut can not be missed: it may have published that step, and then its successor goes on
// behind it and does not ask again.
bool Save::GoesOn() const { return !coordinator_->stopped() && (!gone_ || told_); }

absl::StatusOr<SnapshotState> Save::Cut() {
  SnapshotOptions options;
  options.plane_mask = SnapshotPool::AllPlanes(*memory_);
  options.plane_mask |= SnapshotPool::kTrainerState;
  std::random_device random;
  options.token = absl::StrCat("save ", random(), random());
  options.after_step = Step(request_.after_step());
  if (request_.after_step() != 0) {
    options.on_proposed = [this] {
      TellCut(Step(request_.after_step()));
      told_ = !gone_;
    };
    options.cancelled = [this] { return !TellWritten(); };
  }
  absl::StatusOr<SnapshotState> state = coordinator_->snapshots().Open(*memory_, options, deadline_);
  if (state.ok() && request_.after_step() == 0) TellCut(state->step);
  return state;
}

absl::StatusOr<v1::SaveProgress::Result> Save::Run() {
  absl::StatusOr<std::unique_ptr<CheckpointDir>> dir = CheckpointDir::Open(request_.directory());
  if (!dir.ok()) return dir.status();
  const std::optional<runtime::Assignment> owners = memory_->control().Newest();
  servers_ = owners.has_value() ? owners->servers : 1;
  // What a host owns is what a slot of so many would: files of hosts are read as those of slots are.
  if (memory_->place().several()) servers_ = memory_->grid().group;
  written_ = std::vector<std::atomic<int64_t>>(servers_);
  for (int p = 0; p < memory_->planes(); ++p) bytes_ += memory_->plane_blocks(p) * kBlockElements * 4;
  const absl::StatusOr<SnapshotState> state = Cut();
  if (!state.ok()) return state.status();
  const absl::Time begun = runtime::SteadyNow();
  snapshot_ = state->id;
  const auto release = absl::MakeCleanup([&] { coordinator_->snapshots().Release(*memory_, snapshot_); });
  manifest_.set_epoch(memory_->control().epoch.load());
  absl::StatusOr<std::shared_ptr<SnapshotReader>> reader = SnapshotReader::Open(memory_, snapshot_);
  if (!reader.ok()) return reader.status();
  if (absl::Status s = WriteParts(**dir, **reader); !s.ok()) return s;
  if (absl::Status s = WriteRest(**dir, **reader); !s.ok()) return s;
  v1::SaveProgress::Result result;
  result.set_tag(TagOf(request_, state->step.value()));
  if (absl::Status s = (*dir)->Commit(result.tag()); !s.ok()) return s;
  result.set_path(absl::StrCat((*dir)->path(), "/", result.tag()));
  result.set_step(state->step.value());
  result.set_files(manifest_.parts_size() + 2);
  for (const auto& file : manifest_.parts()) result.set_bytes(result.bytes() + file.bytes());
  ToProto(runtime::SteadyNow() - begun, result.mutable_duration());
  for (const std::string& tag : (*dir)->Keep(request_.keep())) result.add_removed(tag);
  spdlog::info("saved step {} as {}", result.step(), result.path());
  return result;
}

void Save::TakePart(Slot slot, int attempt, const v1::PartFile& file) {
  v1::CheckpointManifest::File* out = manifest_.mutable_parts(slot.value());
  out->set_name(PartName(slot, servers_, attempt));
  out->set_bytes(file.bytes());
  out->set_crc32c(file.crc32c());
  out->set_chunk_bytes(file.chunk_bytes());
  *out->mutable_chunk_crc32c() = file.chunk_crc32c();
}

absl::Status Save::WriteParts(const CheckpointDir& dir, SnapshotReader& reader) {
  for (int m = 0; m < servers_; ++m) manifest_.add_parts();
  SlotCrew crew(context_, coordinator_, servers_);
  SlotWork work;
  work.stand_in = true;
  work.go_on = [&] {
    // What is read of it afterwards must not expire while another host writes its part.
    reader.Check().IgnoreError();
    return TellWritten();
  };
  work.remote = [&](Slot slot, int attempt, SlotWork::Stub& stub, grpc::ClientContext* client) {
    const auto reader = stub.WritePart(client, PartRequest(dir, slot, attempt));
    v1::WritePartProgress message;
    bool done = false;
    while (reader->Read(&message)) {
      if (message.has_file()) {
        TakePart(slot, attempt, message.file());
        done = true;
      } else {
        written_[slot.value()].store(message.written_bytes(), std::memory_order_relaxed);
      }
    }
    const absl::Status ended = FromGrpc(reader->Finish());
    return ended.ok() && !done ? absl::InternalError("a server has not said what it wrote") : ended;
  };
  work.local = [&](Slot slot, int attempt) {
    const absl::StatusOr<v1::PartFile> file =
        WritePartHere(context_, PartRequest(dir, slot, attempt), [&](int64_t bytes) {
          written_[slot.value()].store(bytes, std::memory_order_relaxed);
          return !crew.stopping();
        });
    if (file.ok()) TakePart(slot, attempt, *file);
    return file.status();
  };
  return crew.Run(work, deadline_);
}

// The files of the manifest are there, and nothing that a writer who died has left beside them.
absl::Status Save::Settle(const CheckpointDir& dir) const {
  std::map<std::string, int64_t> files = {{manifest_.state().name(), manifest_.state().bytes()}};
  for (const v1::CheckpointManifest::File& file : manifest_.parts()) files[file.name()] = file.bytes();
  absl::Status settled = dir.Settle(files);
  if (absl::IsDataLoss(settled) && memory_->place().several()) {
    return absl::FailedPreconditionError(
        absl::StrCat(settled.message(), ": ", dir.path(), " of another host is not the one of host ",
                     memory_->place().index, "; save into a file system that all hosts share"));
  }
  return settled;
}

absl::Status Save::WriteRest(const CheckpointDir& dir, SnapshotReader& reader) {
  JobSpec spec = memory_->spec();
  spec.world_size = reader.pool().world_size();  // of this step
  CheckpointState state;
  state.buffers.assign(reader.buffers().data(), reader.buffers().size());
  for (int r = 0; r < spec.world_size; ++r) state.blobs.emplace_back(reader.pool().blob(Rank(r)));
  manifest_.mutable_state()->set_name("state.safetensors");
  absl::StatusOr<formats::FileSum> sum =
      WriteState(spec, state, absl::StrCat(dir.staging(), "/", manifest_.state().name()));
  if (!sum.ok()) return sum.status();
  SetSum(*sum, manifest_.mutable_state());
  ToProto(spec, manifest_.mutable_job());
  manifest_.set_step(reader.step().value());
  manifest_.set_servers(servers_);
  for (int p = 0; p < memory_->planes(); ++p) manifest_.add_planes(memory_->plane_name(p));
  for (size_t t = 0; t < spec.layout.tensors().size(); ++t)
    manifest_.add_update_counts(reader.UpdateCount(static_cast<int>(t)));
  for (const GroupScalars& g : reader.pool().groups())
    manifest_.add_groups()->mutable_scalars()->Assign(g.begin(), g.end());
  manifest_.set_updates(reader.pool().updates());
  const LossScale& scale = reader.pool().loss_scale();
  v1::CheckpointManifest::LossScaleState* to = manifest_.mutable_loss_scale();
  to->set_scale(scale.scale);
  to->set_last(scale.last);
  to->set_i(scale.i);
  to->set_skipped(scale.skipped);
  to->set_credit(scale.credit);
  to->set_floor(scale.floor);
  manifest_.set_saved_unix_nanos(absl::ToUnixNanos(absl::Now()));
  // All that the manifest tells of was read while the snapshot was there.
  if (absl::Status s = reader.Check(); !s.ok()) return s;
  if (absl::Status s = Settle(dir); !s.ok()) return s;
  const absl::StatusOr<std::string> text = EncodeManifest(manifest_);
  if (!text.ok()) return text.status();
  return formats::WriteWhole(absl::StrCat(dir.staging(), "/", kManifestName), *text);
}

}  // namespace

absl::StatusOr<v1::SaveProgress::Result> SaveCheckpoint(
    ServiceContext* context, Coordinator* coordinator, const v1::SaveRequest& request, absl::Time deadline,
    const std::function<bool(const v1::SaveProgress&)>& tell) {
  if (absl::Status s = CheckRequest(request); !s.ok()) return s;
  const absl::StatusOr<JobMemory*> memory = context->Memory();
  if (!memory.ok()) return memory.status();
  return Save(context, coordinator, *memory, request, deadline, tell).Run();
}

absl::StatusOr<v1::PartFile> WritePartHere(ServiceContext* context, const v1::WritePartRequest& request,
                                           const std::function<bool(int64_t written_bytes)>& tell) {
  const absl::StatusOr<JobMemory*> memory = context->Memory();
  if (!memory.ok()) return memory.status();
  absl::Status s = CheckInRange("servers", request.servers(), 1, runtime::kMaxSlots);
  if (s.ok()) s = CheckInRange("slot", request.slot(), 0, request.servers() - 1);
  if (s.ok() && (request.path().empty() || request.path()[0] != '/'))
    s = absl::InvalidArgumentError(absl::StrCat("path \"", request.path(), "\" is not absolute"));
  if (s.ok() && (*memory)->place().several()) s = CheckHostPart(**memory, request);
  if (!s.ok()) return s;
  const absl::StatusOr<std::shared_ptr<SnapshotReader>> reader =
      SnapshotReader::Open(*memory, request.snapshot_id());
  if (!reader.ok()) return reader.status();
  for (int p = 0; p < (*memory)->planes(); ++p) {
    if (!(*reader)->HasPlane(p))
      return absl::InvalidArgumentError(
          absl::StrCat("snapshot ", request.snapshot_id(), " has no plane ", (*memory)->plane_name(p)));
  }
  const absl::StatusOr<formats::FileSum> sum =
      WritePart(**memory, **reader, Slot(request.slot()), request.servers(), request.path(),
                request.rate_bytes_per_second(), tell);
  if (!sum.ok()) return sum.status();
  v1::PartFile file;
  SetSum(*sum, &file);
  return file;
}

}  // namespace sherd::server
