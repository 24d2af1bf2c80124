#include "server/checkpoint_service.h"

#include <algorithm>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/impl/method_handler_impl.h"
#include "grpcpp/support/byte_buffer.h"
#include "proto/convert.h"
#include "proto/sherd/v1/checkpoint.grpc.pb.h"
#include "runtime/clock.h"
#include "runtime/crc32c.h"
#include "runtime/doorbell.h"
#include "runtime/mutex.h"
#include "server/chunk_frame.h"
#include "server/host_imports.h"
#include "server/host_part.h"
#include "server/host_survivor.h"
#include "server/import_names.h"
#include "server/import_stage.h"
#include "server/import_stream.h"
#include "server/live_sends.h"
#include "server/operation_gate.h"
#include "server/read_ahead.h"
#include "server/restore_operation.h"
#include "server/save_operation.h"
#include "server/snapshot_messages.h"
#include "server/snapshot_table.h"
#include "server/store_values.h"
#include "server/tensor_stream.h"
#include "server/token_bucket.h"
#include "server/trainers.h"

namespace sherd::server {
namespace {

using grpc::ServerContext;
using grpc::Status;
using runtime::JobMemory;
using CoordinatorOr = absl::StatusOr<std::shared_ptr<Coordinator>>;
using CheckpointStub = v1::CheckpointService::Stub;
using PullStream = grpc::ServerReaderWriter<grpc::ByteBuffer, v1::PullRequest>;

// Large messages: each costs gRPC as much as copying some 200 KB. But still in a core's cache when they are
// sent.
constexpr uint64_t kChunkBytes = 1 << 20;
// Read and summed at a time: stays in a core's nearer cache.
constexpr uint64_t kPieceBytes = 64 << 10;
// Where Pull stands in checkpoint.proto: the generated code numbers methods in that order.
constexpr int kPullMethod = 3;

class CheckpointServiceImpl final : public v1::CheckpointService::Service {
 public:
  explicit CheckpointServiceImpl(ServiceContext* context) : context_(context) {
    // Pull's answers are framed by hand (chunk_frame.h), so its handler writes byte buffers. On the wire
    // nothing differs.
    MarkMethodStreamed(
        kPullMethod, new grpc::internal::TemplatedBidiStreamingHandler<PullStream, false>(
                         [this](ServerContext* call, PullStream* stream) { return RawPull(call, stream); }));
  }

  Status Snapshot(ServerContext* call, const v1::SnapshotRequest* request,
                  v1::SnapshotInfo* response) override {
    const CoordinatorOr c = context_->AdmitChange(*call, request->job(), request->token(), /*any_job=*/true);
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->ForwardWhileLinked<v1::CheckpointService>(*call, &CheckpointStub::Snapshot, *request,
                                                                 response);
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    if (!memory.ok()) return ToGrpc(memory.status());
    const absl::StatusOr<SnapshotOptions> options = OptionsFrom(**memory, *request);
    if (!options.ok()) return ToGrpc(options.status());
    const absl::StatusOr<SnapshotState> opened =
        (*c)->snapshots().Open(**memory, *options, DeadlineOf(*call));
    if (!opened.ok()) return ToGrpc(opened.status());
    FillInfo(**memory, *opened, response);
    return Status::OK;
  }

  Status Release(ServerContext* call, const v1::ReleaseRequest* request,
                 v1::ReleaseResponse* response) override {
    if (absl::Status s = context_->Admit(*call, request->job(), /*any_job=*/true); !s.ok()) return ToGrpc(s);
    const CoordinatorOr c = context_->FindCoordinator(*call);
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->ForwardWhileLinked<v1::CheckpointService>(*call, &CheckpointStub::Release, *request,
                                                                 response);
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    if (!memory.ok()) return ToGrpc(memory.status());
    (*c)->snapshots().Release(**memory, request->id());
    return Status::OK;
  }

  Status ListSnapshots(ServerContext* call, const v1::ListSnapshotsRequest* request,
                       v1::ListSnapshotsResponse* response) override {
    if (absl::Status s = context_->Admit(*call, request->job(), /*any_job=*/true); !s.ok()) return ToGrpc(s);
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    if (!memory.ok()) return ToGrpc(memory.status());
    for (const SnapshotState& state : Snapshots::List(**memory))
      FillInfo(**memory, state, response->add_snapshots());
    return Status::OK;
  }

  Status Push(ServerContext* call, grpc::ServerReader<v1::PushRequest>* reader,
              v1::PushResponse* response) override {
    v1::PushRequest first;
    if (!reader->Read(&first) || !first.has_begin()) {
      return ToGrpc(absl::InvalidArgumentError("the first message must be `begin`"));
    }
    const CoordinatorOr c =
        context_->AdmitChange(*call, first.begin().job(), first.begin().token(), /*any_job=*/true);
    if (!c.ok()) return ToGrpc(c.status());
    // Of several hosts whoever is asked passes on to each what it owns.
    if (*c == nullptr && context_->Others() == nullptr)
      return context_->ForwardMessages<v1::CheckpointService>(*call, &CheckpointStub::Push, first, reader,
                                                              response);
    const absl::StatusOr<v1::ProposeImportResponse> stored = Store(call, first.begin(), c->get(), reader);
    if (!stored.ok()) return ToGrpc(stored.status());
    response->set_step(stored->step());
    return Status::OK;
  }

  Status Save(ServerContext* call, const v1::SaveRequest* request,
              grpc::ServerWriter<v1::SaveProgress>* writer) override {
    const CoordinatorOr c = context_->AdmitChange(*call, request->job(), request->token(), /*any_job=*/true);
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->ForwardAnswers<v1::CheckpointService>(*call, &CheckpointStub::Save, *request, writer,
                                                             /*while_linked=*/true);
    using Result = v1::SaveProgress::Result;
    const auto tell = [&](const v1::SaveProgress& m) {
      if (m.has_cut()) NoteCut(request->token(), m);
      return !call->IsCancelled() && writer->Write(m);
    };
    // A trainer would hold up its step while another save is written, however slowly: it gets an error
    // instead, unless that is just being given up.
    absl::Time patience =
        request->after_step() != 0 ? runtime::SteadyNow() + absl::Milliseconds(500) : DeadlineOf(*call);
    if (const std::optional<v1::SaveProgress> cut = CutOf(request->token()); cut.has_value()) {
      writer->Write(*cut);  // asked for again, by a trainer's successor
      patience = DeadlineOf(*call);
    }
    const absl::StatusOr<Result> result =
        saves_.Run(request->token(), patience, "save", [&]() -> absl::StatusOr<Result> {
          return SaveCheckpoint(context_, c->get(), *request, DeadlineOf(*call), tell);
        });
    if (!result.ok()) {
      ForgetCut(request->token());
      return ToGrpc(result.status());
    }
    v1::SaveProgress last;
    *last.mutable_result() = *result;
    writer->Write(last);
    return Status::OK;
  }

  Status Restore(ServerContext* call, const v1::RestoreRequest* request,
                 v1::RestoreResponse* response) override {
    const CoordinatorOr c = context_->AdmitChange(*call, request->job(), request->token(), /*any_job=*/true);
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->Forward<v1::CheckpointService>(*call, &CheckpointStub::Restore, *request, response);
    const absl::StatusOr<v1::RestoreResponse> result =
        restores_.Run(request->token(), DeadlineOf(*call), "restore",
                      [&] { return RestoreIntoJob(context_, c->get(), *request, DeadlineOf(*call)); });
    if (result.ok()) *response = *result;
    return ToGrpc(result.status());
  }

  Status WritePart(ServerContext* call, const v1::WritePartRequest* request,
                   grpc::ServerWriter<v1::WritePartProgress>* writer) override {
    if (absl::Status s = context_->Admit(*call, request->job()); !s.ok()) return ToGrpc(s);
    absl::Time tell_at = runtime::SteadyNow();
    const absl::StatusOr<v1::PartFile> file = WritePartHere(context_, *request, [&](int64_t bytes) {
      if (runtime::SteadyNow() < tell_at) return !call->IsCancelled();
      tell_at = runtime::SteadyNow() + absl::Milliseconds(100);
      v1::WritePartProgress message;
      message.set_written_bytes(bytes);
      return !call->IsCancelled() && writer->Write(message);
    });
    if (!file.ok()) return ToGrpc(file.status());
    v1::WritePartProgress last;
    *last.mutable_file() = *file;
    writer->Write(last);
    return Status::OK;
  }

  Status ReadPart(ServerContext* call, const v1::ReadPartRequest* request,
                  v1::ReadPartResponse* response) override {
    if (absl::Status s = context_->Admit(*call, request->job()); !s.ok()) return ToGrpc(s);
    const absl::StatusOr<v1::ReadPartResponse> read =
        ReadPartHere(context_, *request, [&] { return !call->IsCancelled(); });
    if (read.ok()) *response = *read;
    return ToGrpc(read.status());
  }

  Status NameImport(ServerContext* call, const v1::NameImportRequest* request,
                    v1::NameImportResponse*) override {
    if (absl::Status s = context_->Admit(*call, request->job()); !s.ok()) return ToGrpc(s);
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    return ToGrpc(memory.ok()
                      ? NameImportHere(**memory, request->from(), request->to(), request->generation())
                      : memory.status());
  }

  Status WriteShare(
      ServerContext* call,
      grpc::ServerReaderWriter<v1::WriteShareResponse, v1::WriteShareRequest>* stream) override {
    v1::WriteShareRequest first;
    if (!stream->Read(&first) || !first.has_begin())
      return ToGrpc(absl::InvalidArgumentError("the first message must be `begin`"));
    if (absl::Status s = context_->Admit(*call, first.begin().job()); !s.ok()) return ToGrpc(s);
    const absl::StatusOr<StreamBudget::Place> place = context_->shares().Take("writes of other hosts");
    if (!place.ok()) return ToGrpc(place.status());
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    if (!memory.ok()) return ToGrpc(memory.status());
    return ToGrpc(TakeShare(context_->Others(), *memory, first.begin(), call, stream));
  }

  Status ProposeImport(ServerContext* call, const v1::ProposeImportRequest* request,
                       v1::ProposeImportResponse* response) override {
    const CoordinatorOr c = context_->AdmitChange(*call, request->job(), request->token());
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->Forward<v1::CheckpointService>(*call, &CheckpointStub::ProposeImport, *request,
                                                      response);
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    if (!memory.ok()) return ToGrpc(memory.status());
    const absl::StatusOr<v1::ProposeImportResponse> stored =
        ProposeImportHere(context_->Others(), **memory, **c, *request, DeadlineOf(*call));
    if (stored.ok()) *response = *stored;
    return ToGrpc(stored.status());
  }

  Status DropImport(ServerContext* call, const v1::DropImportRequest* request,
                    v1::DropImportResponse*) override {
    if (absl::Status s = context_->Admit(*call, request->job()); !s.ok()) return ToGrpc(s);
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    return ToGrpc(memory.ok() ? DropImportHere(**memory, *request) : memory.status());
  }

  Status OpenPool(ServerContext* call, const v1::OpenPoolRequest* request, v1::OpenPoolResponse*) override {
    if (absl::Status s = context_->Admit(*call, request->job()); !s.ok()) return ToGrpc(s);
    return ToGrpc(OpenPoolHere(context_, *request));
  }

  Status AwaitCut(ServerContext* call, const v1::AwaitCutRequest* request,
                  v1::AwaitCutResponse* response) override {
    if (absl::Status s = context_->Admit(*call, request->job()); !s.ok()) return ToGrpc(s);
    const absl::StatusOr<Step> step =
        AwaitCutHere(context_, *request, DeadlineOf(*call), [&] { return !call->IsCancelled(); });
    if (step.ok()) response->set_step(step->value());
    return ToGrpc(step.status());
  }

  Status ReleasePool(ServerContext* call, const v1::ReleaseRequest* request, v1::ReleaseResponse*) override {
    if (absl::Status s = context_->Admit(*call, request->job()); !s.ok()) return ToGrpc(s);
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    if (memory.ok()) server::ReleasePool(**memory, request->id());
    return ToGrpc(memory.status());
  }

  Status ReadShare(ServerContext* call, const v1::ReadShareRequest* request,
                   grpc::ServerWriter<v1::Chunk>* writer) override {
    if (absl::Status s = context_->Admit(*call, request->job()); !s.ok()) return ToGrpc(s);
    return ToGrpc(ReadShareHere(context_, *request, [&](const v1::Chunk& chunk) {
      return !call->IsCancelled() && writer->Write(chunk);
    }));
  }

  Status FenceHost(ServerContext* call, const v1::FenceHostRequest* request,
                   grpc::ServerWriter<v1::HostRecord>* writer) override {
    return WithMemory(
        request->job(),
        [&](JobMemory& memory) {
          return FenceHostHere(
              memory, *request, [&](const v1::HostRecord& record) { return writer->Write(record); },
              [&] { return !call->IsCancelled(); });
        },
        *call);
  }

  Status TellRecord(ServerContext* call, const v1::TellRecordRequest* request,
                    v1::TellRecordResponse*) override {
    return WithMemory(
        request->job(), [&](JobMemory& memory) { return TellRecordHere(memory, *request); }, *call);
  }

  Status CopyState(ServerContext* call, const v1::CopyStateRequest* request,
                   grpc::ServerWriter<v1::StatePiece>* writer) override {
    return WithMemory(
        request->job(),
        [&](JobMemory& memory) {
          return CopyStateHere(memory, *request, [&](const v1::StatePiece& piece) {
            return !call->IsCancelled() && writer->Write(piece);
          });
        },
        *call);
  }

 private:
  Status WithMemory(const std::string& job, const std::function<absl::Status(JobMemory&)>& answer,
                    const ServerContext& call) {
    if (absl::Status s = context_->Admit(call, job); !s.ok()) return ToGrpc(s);
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    return ToGrpc(memory.ok() ? answer(**memory) : memory.status());
  }

  Status RawPull(ServerContext* call, PullStream* stream) {
    v1::PullRequest request;
    if (!stream->Read(&request))
      return ToGrpc(absl::InvalidArgumentError("the request is missing or damaged"));
    if (absl::Status s = context_->Admit(*call, request.job(), /*any_job=*/true); !s.ok()) return ToGrpc(s);
    return ToGrpc(PullFrom(call, request, stream));
  }

  absl::Status PullFrom(ServerContext* call, const v1::PullRequest& request, PullStream* out) {
    const absl::StatusOr<StreamBudget::Place> place = context_->reads().Take("reads and pulls");
    if (!place.ok()) return place.status();
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    if (!memory.ok()) return memory.status();
    const absl::StatusOr<DType> dtype = DTypeFromProto(request.dtype(), "dtype", DType::kFloat32);
    if (!dtype.ok()) return dtype.status();
    const uint64_t rate = request.rate_bytes_per_second();
    if (absl::Status s = CheckRate(rate); !s.ok()) return s;
    if (request.snapshot_id() == 0) return absl::InvalidArgumentError("snapshot_id=0: take a snapshot first");
    if (request.tensors().empty()) return absl::InvalidArgumentError("tensors is empty: name what to pull");
    const absl::StatusOr<std::shared_ptr<SnapshotReader>> reader =
        SnapshotReader::Open(*memory, request.snapshot_id());
    if (!reader.ok()) return reader.status();
    const absl::StatusOr<std::unique_ptr<HostShares>> shares =
        SharesOf(context_, **reader, DeadlineOf(*call));
    if (!shares.ok()) return shares.status();
    TensorStream values(*memory, reader->get(), shares->get());
    for (const v1::TensorRef& ref : request.tensors()) {
      const absl::StatusOr<ValueRef> found = FindValues(**memory, ref.name(), PlaneOf(ref));
      if (!found.ok()) return found.status();
      const bool param = found->kind == ValueRef::kPlane && found->plane == 0;
      const DType as = param ? *dtype : DType::kFloat32;
      if (absl::Status s = values.Add(*found, as); !s.ok()) return s;
      if (*shares != nullptr && found->kind == ValueRef::kPlane) (*shares)->Add(ref, {}, ToProto(as));
    }
    if (request.offset() > values.bytes()) {
      return absl::OutOfRangeError(
          absl::StrCat("offset=", request.offset(), " is past the end of ", values.bytes(), " bytes"));
    }
    return Send(call, **memory, request.offset(), rate, *reader, values, out);
  }

  static absl::Status Send(ServerContext* call, JobMemory& memory, uint64_t offset, uint64_t rate,
                           const std::shared_ptr<SnapshotReader>& reader, TensorStream& values,
                           PullStream* out) {
    ChunkBuffers buffers(kChunkBytes);
    LiveSends live_sends(reader);
    // What goes on after a break goes the sure way.
    const bool may_send_live = offset == 0 && rate == 0;
    TokenBucket bucket(rate);
    // A slow rate goes in small chunks, so that it is even.
    const uint64_t step = bucket.Piece(kChunkBytes);
    uint64_t filled = offset;
    const auto make = [&]() -> ReadAhead::Result {
      if (filled == values.bytes()) return std::nullopt;
      const uint64_t n = std::min(step, values.bytes() - filled);
      if (may_send_live && !internal::AnyTrainerAttached(memory)) {
        const TensorStream::Live live = values.FindLive(filled, n);
        std::optional<grpc::ByteBuffer> message;
        if (live.data != nullptr) message = live_sends.Make(filled, live, n);
        if (message.has_value()) {
          filled += n;
          return message;
        }
      }
      ChunkBuffers::Buffer buffer = buffers.Take();
      uint32_t crc = 0;
      for (uint64_t at = 0; at < n; at += kPieceBytes) {
        const absl::Span<char> piece(buffer.data() + at, std::min(kPieceBytes, n - at));
        if (absl::Status s = values.Fill(filled + at, piece); !s.ok()) return s;
        crc = runtime::ExtendCrc32c(crc, piece.data(), piece.size());
      }
      filled += n;
      return std::move(buffer).ToMessage(filled - n, n, crc);
    };
    // Two cores are busy with sending and receiving: one more thread would only move the data between them.
    std::optional<ReadAhead> ahead;
    if (runtime::UsableCores() > 2) ahead.emplace(make);
    for (; offset < values.bytes(); offset += step) {
      const ReadAhead::Result message = ahead.has_value() ? ahead->Next() : make();
      if (!message.ok()) return message.status();
      const absl::Time go = runtime::SteadyNow() + bucket.Spend(std::min(step, values.bytes() - offset));
      while (runtime::SteadyNow() < go) {
        if (call->IsCancelled()) return absl::CancelledError("the reader has gone");
        if (absl::Status s = reader->Check(); !s.ok()) return s;
        absl::SleepFor(std::min(go - runtime::SteadyNow(), absl::Milliseconds(50)));
      }
      if (!out->Write(**message)) return absl::CancelledError("the reader has gone");
    }
    return live_sends.Await([&] { return !call->IsCancelled(); });
  }

  // `coordinator`: if it is here.
  absl::StatusOr<v1::ProposeImportResponse> Store(ServerContext* call, const v1::PushRequest::Begin& begin,
                                                  Coordinator* coordinator,
                                                  grpc::ServerReader<v1::PushRequest>* reader) {
    const absl::StatusOr<StreamBudget::Place> place = context_->writes().Take("writes");
    if (!place.ok()) return place.status();
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    if (!memory.ok()) return memory.status();
    const absl::StatusOr<std::unique_ptr<ImportStage>> stage =
        ImportStage::Begin(context_->Others(), *memory, begin.manifest(), !begin.partial(),
                           /*by_step_record=*/false, DeadlineOf(*call));
    if (!stage.ok()) return stage.status();
    if (absl::Status s = TakeImport<v1::PushRequest>(reader, **stage); !s.ok()) return s;
    return StoreValues(context_, *call, coordinator, begin.token(), **stage);
  }

  ServiceContext* const context_;
  // The newest save that was cut, or whose cut can not be missed: for those who ask for it again.
  void NoteCut(const std::string& token, const v1::SaveProgress& cut) {
    runtime::MutexLock lock(mu_);
    cut_token_ = token;
    cut_ = cut;
  }
  void ForgetCut(const std::string& token) {
    runtime::MutexLock lock(mu_);
    if (token == cut_token_) cut_token_.clear();
  }
  std::optional<v1::SaveProgress> CutOf(const std::string& token) {
    runtime::MutexLock lock(mu_);
    return token == cut_token_ ? std::optional<v1::SaveProgress>(cut_) : std::nullopt;
  }

  runtime::Mutex mu_;
  std::string cut_token_ ABSL_GUARDED_BY(mu_);
  v1::SaveProgress cut_ ABSL_GUARDED_BY(mu_);
  OperationGate<v1::SaveProgress::Result> saves_;
  OperationGate<v1::RestoreResponse> restores_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeCheckpointService(ServiceContext* context) {
  return std::make_unique<CheckpointServiceImpl>(context);
}

}  // namespace sherd::server
