#include "client/session.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/rpc/endpoints.h"
#include "proto/convert.h"
#include "proto/sherd/v1/shard.pb.h"
#include "runtime/clock.h"
#include "runtime/crc32c.h"
#include "runtime/process_identity.h"

namespace sherd {
namespace {

constexpr int64_t kChunkBytes = 1 << 20;

int FromEnvironmentInt(const char* name, int otherwise, std::string* problem) {
  const char* text = std::getenv(name);
  if (text == nullptr) return otherwise;
  int value = 0;
  if (!absl::SimpleAtoi(text, &value)) {
    *problem = absl::StrCat(name, " is \"", text, "\": it must be a number; `sherd run` sets it");
  }
  return value;
}

// A job whose directory is there lives, though all its servers may just be restarting, with a back-off of
// seconds: a trainer that comes at that moment waits for them. Where there is nothing, an error comes soon.
rpc::JobClient::Options CallsTo(const std::vector<std::string>& endpoints, absl::Duration timeout,
                                runtime::Access access) {
  rpc::JobClient::Options options;
  options.access = std::move(access);
  options.retry.patience = timeout;
  for (const std::string& endpoint : endpoints) {
    const absl::string_view path = absl::StripPrefix(endpoint, "unix:");
    // On a host that joined a job the store is elsewhere; its agent has a file there.
    for (const char* name : {"/store", "/agent"}) {
      const std::string sign = absl::StrCat(path.substr(0, path.rfind('/')), name);
      if (path.size() < endpoint.size() && ::access(sign.c_str(), F_OK) == 0)
        options.first_patience = timeout;
    }
  }
  return options;
}

}  // namespace

SessionOptions SessionOptions::FromEnvironment() {
  SessionOptions o;
  const char* endpoint = std::getenv("SHERD_ENDPOINT");
  if (endpoint != nullptr) o.endpoints = endpoint;
  o.access.FillFrom([](const char* name) { return std::getenv(name); });
  const char* job = std::getenv("SHERD_JOB");
  if (job != nullptr) o.job = job;
  const char* groups = std::getenv("SHERD_REDUCE_GROUPS");
  if (groups != nullptr) o.reduce_groups = groups;
  o.replicas = FromEnvironmentInt("SHERD_REPLICAS", 0, &o.problem);
  o.rank = FromEnvironmentInt("RANK", 0, &o.problem);
  o.world_size = FromEnvironmentInt("WORLD_SIZE", 1, &o.problem);
  return o;
}

absl::StatusOr<std::unique_ptr<Session>> Session::Connect(SessionOptions options) {
  if (!options.problem.empty()) return absl::InvalidArgumentError(options.problem);
  if (options.endpoints.empty()) {
    return absl::FailedPreconditionError(
        "SHERD_ENDPOINT is not set: start this program with `sherd run -n 2 -- PROGRAM ...`");
  }
  if (options.world_size < 1 || options.rank < 0 || options.rank >= options.world_size) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", options.rank, " of a world of ",
                                                   options.world_size, ": RANK must be in 0..WORLD_SIZE-1"));
  }
  absl::StatusOr<std::vector<std::string>> endpoints = rpc::ParseEndpoints(options.endpoints);
  if (!endpoints.ok()) return endpoints.status();
  absl::StatusOr<runtime::Access> access = runtime::ReadAccess(options.access, runtime::AccessSide::kCaller);
  if (!access.ok()) return access.status();
  return absl::WrapUnique(new Session(std::move(options), *std::move(endpoints), *std::move(access)));
}

Session::Session(SessionOptions options, std::vector<std::string> endpoints, runtime::Access access)
    : options_(std::move(options)),
      client_(endpoints, CallsTo(endpoints, options_.timeout, std::move(access))),
      job_(options_.job) {}

Session::~Session() {
  if (attached_) Detach(/*finished=*/false).IgnoreError();
}

absl::Status Session::Attach(JobSpec spec) {
  if (attached_) return absl::FailedPreconditionError("this session is attached already");
  spec.job = job_;
  spec.world_size = options_.world_size;
  if (!options_.reduce_groups.empty()) {
    absl::StatusOr<ReductionTree> tree = ParseReductionTree(options_.reduce_groups, spec.staging);
    if (!tree.ok()) return tree.status();
    spec.reduction = *std::move(tree);
  }
  if (options_.replicas > 0 && spec.shard_ranks == 0) {
    const absl::StatusOr<int> ranks = ShardRanksFor(spec, options_.replicas);
    if (!ranks.ok()) return ranks.status();
    spec.shard_ranks = *ranks;
  }
  v1::AttachRequest request;
  ToProto(spec, &request);
  request.set_rank(options_.rank);
  const runtime::ProcessIdentity self = runtime::Self();
  request.mutable_process()->set_pid(self.pid);
  request.mutable_process()->set_start_ticks(self.start_ticks);
  request.set_token(rpc::NewToken());
  if (restoring()) {
    v1::RestoreFrom* from = request.mutable_restore();
    from->set_directory(AbsolutePath(options_.restore.directory));
    from->set_tag(options_.restore.tag);
    from->set_weights_only(options_.restore.weights_only);
    from->set_partial(options_.restore.partial);
  }
  // On another host than the first it reads its part of a checkpoint, which takes as long as the disk does.
  absl::StatusOr<v1::AttachResponse> response =
      client_.Attach(request, restoring() ? runtime::SteadyNow() + kRestorePatience : Deadline());
  if (!response.ok()) return response.status();
  attached_ = true;
  incarnation_ = response->incarnation();
  must_initialise_ = response->must_initialise();
  attached_step_ = response->step();
  if (response->world_size() > 0) {  // the job's, whatever this trainer would have begun it with
    spec.world_size = response->world_size();
    spec.nominal_samples = response->nominal_samples();
    spec.parts = response->accumulation_parts();
  }
  absl::StatusOr<runtime::JobDir> dir =
      runtime::JobDir::Open(response->job_dir(), runtime::JobDir::Hold::kMember);
  if (!dir.ok()) return dir.status();
  dir_ = std::make_shared<runtime::JobDir>(*std::move(dir));
  absl::StatusOr<std::unique_ptr<runtime::JobMemory>> memory =
      runtime::JobMemory::Open(dir_.get(), std::move(spec), runtime::JobMemory::Role::kTrainer);
  if (!memory.ok()) return memory.status();
  // The memory points to the directory: whoever keeps the one keeps both.
  memory_ = std::shared_ptr<runtime::JobMemory>(memory->release(),
                                                [dir = dir_](runtime::JobMemory* m) { delete m; });
  const bool first_here = options_.rank == 0 || !memory_->IsHere(Rank(options_.rank - 1));
  writes_share_ = memory_->gather() != nullptr && memory_->spec().gather.initial_shares && first_here &&
                  memory_->gather()->share_written.load(std::memory_order_acquire) == 0;
  return absl::OkStatus();
}

int Session::world_size() const {
  const std::optional<runtime::Assignment> a =
      memory_ == nullptr ? std::nullopt : memory_->control().Newest();
  return a.has_value() ? a->world_size : options_.world_size;
}

std::shared_ptr<PendingSave> Session::StartSave(const SaveOptions& options, uint64_t after_step) {
  return PendingSave::Start(&client_, job_, options, after_step);
}

absl::StatusOr<uint64_t> Session::StageWrite(const std::vector<NamedValues>& tensors) {
  v1::WriteTensorRequest begin;
  begin.mutable_begin()->set_job(job_);
  begin.mutable_begin()->set_token(rpc::NewToken());
  begin.mutable_begin()->set_by_step_record(true);
  for (const NamedValues& t : tensors) {
    auto* item = begin.mutable_begin()->mutable_manifest()->add_tensors();
    item->mutable_tensor()->set_name(t.name);
    for (int64_t d : t.shape) item->add_shape(d);
    item->set_dtype(v1::DTYPE_FLOAT32);
  }
  v1::WriteTensorResponse response;
  absl::Status status = client_.RetryUnavailable(Deadline(), [&] {
    enum { kBegin, kValues, kCommit, kEnd } at = kBegin;
    size_t tensor = 0;
    int64_t done = 0;     // bytes of that tensor
    uint64_t offset = 0;  // in the stream
    const auto next = [&](v1::WriteTensorRequest* message) -> absl::StatusOr<bool> {
      if (at == kBegin) {
        *message = begin;
        at = kValues;
        return true;
      }
      while (at == kValues && tensor < tensors.size() &&
             done == static_cast<int64_t>(tensors[tensor].values.size()) * 4) {
        ++tensor;
        done = 0;
      }
      if (at == kValues && tensor == tensors.size()) {
        message->mutable_commit();
        at = kEnd;
        return true;
      }
      if (at == kEnd) return false;
      const char* bytes = reinterpret_cast<const char*>(tensors[tensor].values.data()) + done;
      const int64_t n =
          std::min<int64_t>(kChunkBytes, static_cast<int64_t>(tensors[tensor].values.size()) * 4 - done);
      v1::Chunk* chunk = message->mutable_chunk();
      chunk->set_offset(offset);
      chunk->set_data(bytes, n);
      chunk->set_crc32c(runtime::Crc32c(chunk->data()));
      done += n;
      offset += n;
      return true;
    };
    absl::StatusOr<v1::WriteTensorResponse> r = client_.WriteTensor(next, Deadline());
    if (r.ok()) response = std::move(*r);
    return r.status();
  });
  if (!status.ok()) return status;
  return response.import_id();
}

absl::Status Session::Detach(bool finished) {
  if (!attached_) return absl::OkStatus();
  v1::DetachRequest request;
  request.set_job(job_);
  request.set_rank(options_.rank);
  request.set_incarnation(incarnation_);
  request.set_finished(finished);
  request.set_token(rpc::NewToken());
  attached_ = false;
  return client_.Detach(request, Deadline()).status();
}

}  // namespace sherd
