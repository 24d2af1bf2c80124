#include "server/shard_service.h"

#include <fnmatch.h>

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/host_map.h"
#include "kernels/optimizer_kinds.h"
#include "proto/convert.h"
#include "proto/epoch_record.h"
#include "proto/sherd/v1/shard.grpc.pb.h"
#include "runtime/clock.h"
#include "runtime/crc32c.h"
#include "server/host_begin.h"
#include "server/host_limits.h"
#include "server/host_part.h"
#include "server/import_stage.h"
#include "server/import_stream.h"
#include "server/operation_gate.h"
#include "server/restore_operation.h"
#include "server/store_values.h"
#include "server/tensor_stats.h"
#include "server/tensor_stream.h"

namespace sherd::server {
namespace {

constexpr absl::Duration kLookAgain = absl::Milliseconds(20);

using grpc::ServerContext;
using grpc::Status;
using runtime::JobMemory;
using CoordinatorOr = absl::StatusOr<std::shared_ptr<Coordinator>>;
using ShardStub = v1::ShardService::Stub;

constexpr int kChunkBytes = 1 << 20;

bool Matches(const std::string& glob, const std::string& name) {
  return glob.empty() || ::fnmatch(glob.c_str(), name.c_str(), 0) == 0;
}

class ShardServiceImpl final : public v1::ShardService::Service {
 public:
  explicit ShardServiceImpl(ServiceContext* context) : context_(context) {}

  Status Attach(ServerContext* call, const v1::AttachRequest* request,
                v1::AttachResponse* response) override {
    absl::Status s = context_->Admit(*call, request->job());
    if (s.ok()) s = CheckToken(request->token());
    if (s.ok()) s = CheckProcess(request->process(), "process");
    if (!s.ok()) return ToGrpc(s);
    absl::StatusOr<JobSpec> spec = JobSpecFromProto(*request);
    if (!spec.ok()) return ToGrpc(spec.status());
    s = CheckInRange("rank", request->rank(), 0, spec->world_size - 1);
    if (!s.ok()) return ToGrpc(s);
    const CoordinatorOr c = context_->FindCoordinator(*call);
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr) return AttachElsewhere(*call, *request, *spec, response);
    const absl::StatusOr<Node*> node = context_->node();
    if (!node.ok()) return ToGrpc(node.status());
    s = (*node)->home().AgreeOnStart((*c)->store(), *spec,
                                     request->has_restore() ? &request->restore() : nullptr);
    if (!s.ok()) return ToGrpc(s);
    if (s = CheckForSeveralHosts((*node)->home().place(), *spec); !s.ok()) return ToGrpc(s);
    const absl::StatusOr<Coordinator::Attached> place =
        (*c)->Attach(Rank(request->rank()), request->host(), FromProto(request->process()), *spec,
                     request->token(), DeadlineOf(*call));
    if (!place.ok()) return ToGrpc(place.status());
    response->set_job_dir((*node)->home().dir().path());
    response->set_epoch(place->epoch.value());
    response->set_incarnation(place->incarnation.value());
    response->set_step(place->step.value());
    response->set_must_initialise(place->must_initialise);
    response->set_initialized(place->initialized);
    response->set_servers(place->servers);
    response->set_world_size(place->spec.world_size);
    response->set_nominal_samples(place->spec.nominal_samples);
    response->set_accumulation_parts(place->spec.parts);
    return Status::OK;
  }

  Status CommitInitial(ServerContext* call, const v1::CommitInitialRequest* request,
                       v1::CommitInitialResponse* response) override {
    const CoordinatorOr c = context_->AdmitChange(*call, request->job(), request->token());
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->Forward<v1::ShardService>(*call, &ShardStub::CommitInitial, *request, response);
    if (absl::Status s = RestoreFirst(*call, *c, *request, response); !s.ok()) return ToGrpc(s);
    return ToGrpc((*c)->CommitInitial(Rank(request->rank()), Incarnation(request->incarnation())));
  }

  Status Detach(ServerContext* call, const v1::DetachRequest* request,
                v1::DetachResponse* response) override {
    const CoordinatorOr c = context_->AdmitChange(*call, request->job(), request->token());
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->Forward<v1::ShardService>(*call, &ShardStub::Detach, *request, response);
    return ToGrpc((*c)->Detach(Rank(request->rank()), Incarnation(request->incarnation()),
                               request->finished(), request->token(), DeadlineOf(*call)));
  }

  Status ListTensors(ServerContext* call, const v1::ListTensorsRequest* request,
                     v1::ListTensorsResponse* response) override {
    absl::Status s = context_->Admit(*call, request->job(), /*any_job=*/true);
    if (s.ok()) s = CheckInRange("page_size", request->page_size(), 0, 10000);
    if (s.ok()) s = CheckInRange("page_token", request->page_token(), 0, kMaxTensors);
    if (!s.ok()) return ToGrpc(s);
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    if (!memory.ok()) return ToGrpc(memory.status());
    const JobSpec& spec = (*memory)->spec();
    const std::vector<std::string> ids = ServerIds();
    const std::optional<runtime::Assignment> owners = (*memory)->control().Newest();
    const int page = request->page_size() == 0 ? 1000 : request->page_size();
    const std::vector<TensorInfo>& all = spec.layout.tensors();
    size_t t = request->page_token();
    for (; t < all.size() && response->tensors_size() < page; ++t) {
      if (!Matches(request->glob(), all[t].spec.name)) continue;
      v1::ListTensorsResponse::Tensor* out = response->add_tensors();
      ToProto(all[t].spec, out->mutable_spec());
      out->set_unit(all[t].unit);
      out->add_planes("param");
      if (all[t].spec.trainable) {
        for (const std::string& plane : OptimizerPlanes(spec.optimizer)) out->add_planes(plane);
      }
      if (owners.has_value()) AddOwners(spec.layout, all[t], owners->hosts, ids, out);
    }
    if (t < all.size()) response->set_next_page_token(static_cast<int64_t>(t));
    if (request->page_token() == 0) {
      for (const BufferSpec& b : spec.buffers) {
        if (Matches(request->glob(), b.name)) ToProto(b, response->add_buffers());
      }
    }
    response->set_epoch((*memory)->control().epoch.load());
    if (const absl::StatusOr<StepId> done = (*memory)->DoneByAll(); done.ok())
      response->set_step(done->step.value());
    return Status::OK;
  }

  Status ReadTensor(ServerContext* call, const v1::ReadTensorRequest* request,
                    grpc::ServerWriter<v1::ReadTensorResponse>* writer) override {
    if (absl::Status s = context_->Admit(*call, request->job(), /*any_job=*/true); !s.ok()) return ToGrpc(s);
    return ToGrpc(Read(call, *request, writer));
  }

  Status TensorStats(ServerContext* call, const v1::TensorStatsRequest* request,
                     grpc::ServerWriter<v1::TensorStat>* writer) override {
    absl::Status s = context_->Admit(*call, request->job(), /*any_job=*/true);
    if (s.ok()) s = CheckInRange("histogram_bins", request->histogram_bins(), 0, 1000);
    if (!s.ok()) return ToGrpc(s);
    return ToGrpc(Stats(call, *request, writer));
  }

  Status WriteTensor(ServerContext* call, grpc::ServerReader<v1::WriteTensorRequest>* reader,
                     v1::WriteTensorResponse* response) override {
    v1::WriteTensorRequest first;
    if (!reader->Read(&first) || !first.has_begin()) {
      return ToGrpc(absl::InvalidArgumentError("the first message must be `begin`"));
    }
    const CoordinatorOr c = context_->AdmitChange(*call, first.begin().job(), first.begin().token());
    if (!c.ok()) return ToGrpc(c.status());
    // Values that a STEP record will name need no coordinator; of several hosts whoever is asked passes them
    // on.
    if (*c == nullptr && !first.begin().by_step_record() && context_->Others() == nullptr)
      return context_->ForwardMessages<v1::ShardService>(*call, &ShardStub::WriteTensor, first, reader,
                                                         response);
    return ToGrpc(Write(call, first.begin(), *c, reader, response));
  }

  Status GetCapabilities(ServerContext* call, const v1::GetCapabilitiesRequest* request,
                         v1::Capabilities* response) override {
    if (absl::Status s = context_->Admit(*call, request->job(), /*any_job=*/true); !s.ok()) return ToGrpc(s);
    response->set_version("0.1.0");
    for (const kernels::OptimizerInfo& info : kernels::kOptimizers) {
      response->add_optimizers(static_cast<v1::Optimizer::Kind>(info.kind));
    }
    for (const int stage : {0, 1, 2, 3}) response->add_stages(stage);
    for (const auto dtype : {v1::DTYPE_FLOAT32, v1::DTYPE_BFLOAT16, v1::DTYPE_FLOAT16}) {
      response->add_dtypes(dtype);
      response->add_read_dtypes(dtype);
    }
    response->set_max_message_bytes(kMaxMessageBytes);
    response->set_max_streams(context_->reads().most());
    response->set_max_snapshots(runtime::ControlPage::kSnapshots);
    return Status::OK;
  }

 private:
  // The place is the coordinator's to give. On another host than its own, the memory is this host's.
  Status AttachElsewhere(const ServerContext& call, v1::AttachRequest request, const JobSpec& spec,
                         v1::AttachResponse* response) {
    const absl::StatusOr<Node*> node = context_->node();
    if (!node.ok()) return ToGrpc(node.status());
    JobHome& home = (*node)->home();
    if (home.place().index == 0)
      return context_->Forward<v1::ShardService>(call, &ShardStub::Attach, request, response);
    while (!(*node)->settled()) {
      if (absl::Status ended = (*node)->why_ended(); !ended.ok()) return ToGrpc(ended);
      if (runtime::SteadyNow() >= DeadlineOf(call) || call.IsCancelled() || (*node)->stopping()) {
        return ToGrpc(absl::UnavailableError(
            absl::StrCat("host ", home.place().index, " is not part of the job yet: repeat the call")));
      }
      absl::SleepFor(kLookAgain);
    }
    request.set_host(home.place().Name());
    const Status placed = context_->Forward<v1::ShardService>(call, &ShardStub::Attach, request, response);
    if (!placed.ok()) return placed;
    const absl::StatusOr<JobMemory*> memory = home.MakeMemory(home.store(), spec);
    if (!memory.ok()) return ToGrpc(memory.status());
    // Also when the caller has gone: it comes again, and a copy of the state takes as long as the link does.
    const auto go_on = [&] { return !(*node)->stopping(); };
    const absl::Status begun = BeginHost(home, **memory, response->servers(), (*node)->others(), go_on);
    if (!begun.ok()) return ToGrpc(begun);
    response->set_job_dir(home.dir().path());
    // The trainer relies on what the coordinator has written, which comes over the data connection.
    runtime::ControlPage& control = (*memory)->control();
    const runtime::MemberEntry& entry = (*memory)->trainer(Rank(request.rank()));
    for (;;) {
      const uint32_t ticket = control.bell.Listen();
      if (control.epoch.load(std::memory_order_acquire) >= response->epoch() &&
          entry.incarnation.load(std::memory_order_acquire) >= response->incarnation() &&
          control.Newest().has_value()) {
        // The trainer maps the pages of all slots, which may have come to be here or not.
        for (int m = 0; m < control.Newest()->servers; ++m) {
          if (absl::Status s = (*memory)->owner(Slot(m)).status(); !s.ok()) return ToGrpc(s);
        }
        return Status::OK;
      }
      if (runtime::SteadyNow() >= DeadlineOf(call) || call.IsCancelled()) {
        const std::string problem = control.LinkProblem();
        return ToGrpc(absl::DeadlineExceededError(
            absl::StrCat("the first host's records have not come over the data connection: ",
                         problem.empty() ? "it was not made yet" : problem)));
      }
      control.bell.Wait(ticket, absl::Milliseconds(50), runtime::SpinPolicy::None());
    }
  }

  // The values of a job that begins from a checkpoint, unless they are there already.
  absl::Status RestoreFirst(const ServerContext& call, const std::shared_ptr<Coordinator>& coordinator,
                            const v1::CommitInitialRequest& request, v1::CommitInitialResponse* response) {
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    if (!memory.ok()) return memory.status();
    const absl::StatusOr<Node*> node = context_->node();
    if (!node.ok()) return node.status();
    const absl::StatusOr<std::optional<v1::RestoreRecord>> record = (*node)->home().Restored();
    if (!record.ok()) return record.status();
    if (!record->has_value() || request.rank() != 0) return absl::OkStatus();
    const absl::Time deadline = DeadlineOf(call);
    const absl::StatusOr<v1::RestoreReport> report =
        restores_.Run(request.token(), deadline, "restore", [&]() -> absl::StatusOr<v1::RestoreReport> {
          if ((*memory)->control().initialized.load(std::memory_order_acquire) != 0)
            return v1::RestoreReport();
          return RestoreInitial(context_, coordinator.get(), **record, deadline);
        });
    if (report.ok()) *response->mutable_restored() = *report;
    return report.status();
  }

  // Names of the servers by slot, from the newest epoch document; empty if it cannot be read.
  std::vector<std::string> ServerIds() const {
    std::vector<std::string> ids;
    const absl::StatusOr<Node*> node = context_->node();
    if (!node.ok()) return ids;
    runtime::MetaStore& store = (*node)->home().store();
    const absl::StatusOr<std::vector<std::string>> epochs = store.List("epoch/");
    if (!epochs.ok() || epochs->empty()) return ids;
    const absl::StatusOr<std::string> bytes = store.Get(epochs->back());
    if (!bytes.ok()) return ids;
    const absl::StatusOr<EpochDoc> doc = DecodeEpochDoc(*bytes);
    if (!doc.ok()) return ids;
    for (const ServerMember& m : doc->servers) ids.push_back(m.id);
    return ids;
  }

  static void AddOwners(const Layout& layout, const TensorInfo& t, const HostMap& hosts,
                        const std::vector<std::string>& ids, v1::ListTensorsResponse::Tensor* out) {
    const BlockRange unit = layout.units()[t.unit].blocks;
    for (int64_t block = t.blocks.begin; block < t.blocks.end;) {
      const Slot slot = OwnerOf(unit, block, hosts);
      const int64_t end = std::min(t.blocks.end, Owned(unit, slot, hosts).end);
      v1::ListTensorsResponse::Owner* owner = out->add_owners();
      owner->set_slot(slot.value());
      if (slot.value() < static_cast<int>(ids.size())) owner->set_server_id(ids[slot.value()]);
      owner->set_begin_element((block - t.blocks.begin) * kBlockElements);
      owner->set_end_element(std::min(t.numel, (end - t.blocks.begin) * kBlockElements));
      block = end;
    }
  }

  // The snapshot that a read names, or one of the current step that `lease` then holds.
  absl::StatusOr<std::shared_ptr<SnapshotReader>> OpenReader(ServerContext* call, JobMemory* memory,
                                                             uint64_t id, uint64_t mask, bool buffers,
                                                             std::unique_ptr<SnapshotLease>* lease) {
    if (id == 0) {
      absl::StatusOr<std::unique_ptr<SnapshotLease>> taken =
          SnapshotLease::Take(context_, *call, mask, buffers);
      if (!taken.ok()) return taken.status();
      *lease = *std::move(taken);
      id = (*lease)->id();
    }
    return SnapshotReader::Open(memory, id);
  }

  absl::Status Read(ServerContext* call, const v1::ReadTensorRequest& request,
                    grpc::ServerWriter<v1::ReadTensorResponse>* writer) {
    const absl::StatusOr<StreamBudget::Place> place = context_->reads().Take("reads and pulls");
    if (!place.ok()) return place.status();
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    if (!memory.ok()) return memory.status();
    const absl::StatusOr<ValueRef> values =
        FindValues(**memory, request.tensor().name(), PlaneOf(request.tensor()));
    if (!values.ok()) return values.status();
    const absl::StatusOr<Slice> slice = SliceFromProto(request.slice(), values->shape);
    if (!slice.ok()) return slice.status();
    const absl::StatusOr<DType> dtype = DTypeFromProto(request.dtype(), "dtype", DType::kFloat32);
    if (!dtype.ok()) return dtype.status();
    const bool plane = values->kind == ValueRef::kPlane;
    std::unique_ptr<SnapshotLease> lease;
    absl::StatusOr<std::shared_ptr<SnapshotReader>> reader = OpenReader(
        call, *memory, request.snapshot_id(), plane ? uint64_t{1} << values->plane : 1, !plane, &lease);
    if (!reader.ok()) return reader.status();
    const absl::StatusOr<std::unique_ptr<HostShares>> shares =
        SharesOf(context_, **reader, DeadlineOf(*call));
    if (!shares.ok()) return shares.status();
    TensorStream stream(*memory, reader->get(), shares->get());
    if (absl::Status s = stream.Add(*values, *slice, *dtype); !s.ok()) return s;
    if (*shares != nullptr && plane) (*shares)->Add(request.tensor(), request.slice(), ToProto(*dtype));

    v1::ReadTensorResponse message;
    v1::ReadTensorResponse::Header* header = message.mutable_header();
    header->set_step((*reader)->step().value());
    header->mutable_shape()->Assign(slice->shape().begin(), slice->shape().end());
    header->set_dtype(plane ? SafetensorsName(*dtype) : values->dtype);
    header->set_bytes(stream.bytes());
    if (values->tensor != nullptr) ToProto(values->tensor->spec, header->mutable_spec());
    bool open = writer->Write(message);
    v1::Chunk* chunk = message.mutable_chunk();
    for (uint64_t at = 0; open && at < stream.bytes(); at += kChunkBytes) {
      std::string* data = chunk->mutable_data();
      data->resize(std::min<uint64_t>(kChunkBytes, stream.bytes() - at));
      if (absl::Status s = stream.Fill(at, absl::MakeSpan(&(*data)[0], data->size())); !s.ok()) return s;
      chunk->set_offset(at);
      chunk->set_crc32c(runtime::Crc32c(*data));
      open = writer->Write(message);
    }
    return open ? absl::OkStatus() : absl::CancelledError("the reader has gone");
  }

  absl::Status Stats(ServerContext* call, const v1::TensorStatsRequest& request,
                     grpc::ServerWriter<v1::TensorStat>* writer) {
    const absl::StatusOr<StreamBudget::Place> place = context_->reads().Take("reads and pulls");
    if (!place.ok()) return place.status();
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    if (!memory.ok()) return memory.status();
    const std::string name = request.plane().empty() ? "param" : request.plane();
    const std::optional<int> plane = FindPlane(**memory, name);
    if (!plane.has_value() || *plane < 0)
      return absl::NotFoundError(absl::StrCat("there is no plane \"", name, "\" with figures"));
    std::unique_ptr<SnapshotLease> lease;
    absl::StatusOr<std::shared_ptr<SnapshotReader>> reader =
        OpenReader(call, *memory, request.snapshot_id(), uint64_t{1} << *plane, false, &lease);
    if (!reader.ok()) return reader.status();
    bool any = false;
    for (const TensorInfo& t : (*memory)->layout().tensors()) {
      if (!Matches(request.glob(), t.spec.name) || (*plane > 0 && !t.spec.trainable)) continue;
      any = true;
      const absl::StatusOr<std::unique_ptr<HostShares>> shares =
          SharesOf(context_, **reader, DeadlineOf(*call));
      if (!shares.ok()) return shares.status();
      TensorStream stream(*memory, reader->get(), shares->get());
      ValueRef values;
      values.tensor = &t;
      values.plane = *plane;
      values.shape = t.spec.shape;
      if (absl::Status s = stream.Add(values, DType::kFloat32); !s.ok()) return s;
      v1::TensorRef ref;
      ref.set_name(t.spec.name);
      ref.set_plane(name);
      if (*shares != nullptr) (*shares)->Add(ref, {}, v1::DTYPE_FLOAT32);
      const absl::StatusOr<TensorFigures> figures = ComputeFigures(stream, request.histogram_bins());
      if (!figures.ok()) return figures.status();
      v1::TensorStat out;
      out.set_name(t.spec.name);
      out.set_step((*reader)->step().value());
      out.set_elements(t.numel);
      out.set_norm(figures->norm);
      out.set_mean(figures->mean);
      out.set_min(figures->min);
      out.set_max(figures->max);
      out.set_nans(figures->nans);
      out.set_infs(figures->infs);
      out.mutable_histogram()->Assign(figures->histogram.begin(), figures->histogram.end());
      if (!writer->Write(out)) return absl::CancelledError("the reader has gone");
    }
    if (!any)
      return absl::NotFoundError(
          absl::StrCat("no tensor with plane ", name, " matches \"", request.glob(), "\""));
    return absl::OkStatus();
  }

  absl::Status Write(ServerContext* call, const v1::WriteTensorRequest::Begin& begin,
                     const std::shared_ptr<Coordinator>& coordinator,
                     grpc::ServerReader<v1::WriteTensorRequest>* reader, v1::WriteTensorResponse* response) {
    const absl::StatusOr<StreamBudget::Place> place = context_->writes().Take("writes");
    if (!place.ok()) return place.status();
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    if (!memory.ok()) return memory.status();
    const absl::StatusOr<std::unique_ptr<ImportStage>> stage =
        ImportStage::Begin(context_->Others(), *memory, begin.manifest(), /*whole_model=*/false,
                           begin.by_step_record(), DeadlineOf(*call));
    if (!stage.ok()) return stage.status();
    if (absl::Status s = TakeImport<v1::WriteTensorRequest>(reader, **stage); !s.ok()) return s;
    if (begin.by_step_record()) {
      const absl::StatusOr<uint64_t> id = (*stage)->NameForStep(DeadlineOf(*call));
      if (id.ok()) response->set_import_id(*id);
      return id.status();
    }
    const absl::StatusOr<v1::ProposeImportResponse> stored =
        StoreValues(context_, *call, coordinator.get(), begin.token(), **stage);
    if (!stored.ok()) return stored.status();
    response->set_import_id(stored->import_id());
    response->set_step(stored->step());
    return absl::OkStatus();
  }

  ServiceContext* const context_;
  OperationGate<v1::RestoreReport> restores_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeShardService(ServiceContext* context) {
  return std::make_unique<ShardServiceImpl>(context);
}

}  // namespace sherd::server
