#include "server/checkpoint_service.h"

#include <algorithm>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "grpcpp/impl/method_handler_impl.h"
#include "proto/convert.h"
#include "proto/sherd/v1/checkpoint.grpc.pb.h"
#include "runtime/clock.h"
#include "runtime/mutex.h"
#include "server/host_imports.h"
#include "server/host_part.h"
#include "server/host_survivor.h"
#include "server/import_names.h"
#include "server/import_stage.h"
#include "server/import_stream.h"
#include "server/operation_gate.h"
#include "server/pull_answer.h"
#include "server/restore_operation.h"
#include "server/save_operation.h"
#include "server/snapshot_messages.h"
#include "server/snapshot_table.h"
#include "server/state_copies.h"
#include "server/store_values.h"

namespace sherd::server {
namespace {

using grpc::ServerContext;
using grpc::Status;
using runtime::JobMemory;
using CoordinatorOr = absl::StatusOr<std::shared_ptr<Coordinator>>;
using CheckpointStub = v1::CheckpointService::Stub;

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

  Status CompareCopies(ServerContext* call, const v1::CompareCopiesRequest* request,
                       v1::CompareCopiesResponse* response) override {
    const CoordinatorOr c = context_->AdmitChange(*call, request->job(), request->token(), /*any_job=*/true);
    if (!c.ok()) return ToGrpc(c.status());
    if (*c == nullptr)
      return context_->ForwardWhileLinked<v1::CheckpointService>(*call, &CheckpointStub::CompareCopies,
                                                                 *request, response);
    return WithMemory(
        request->job(),
        [&](JobMemory& memory) {
          absl::StatusOr<v1::CompareCopiesResponse> compared =
              server::CompareCopies(context_->Others(), memory, (*c)->snapshots(), request->token(),
                                    DeadlineOf(*call), [&] { return !call->IsCancelled(); });
          if (compared.ok()) response->Swap(&*compared);
          return compared.status();
        },
        *call, /*any_job=*/true);
  }

  Status SumShare(ServerContext* call, const v1::SumShareRequest* request,
                  v1::SumShareResponse* response) override {
    return WithMemory(
        request->job(),
        [&](JobMemory& memory) {
          const absl::StatusOr<StreamBudget::Place> place = context_->reads().Take("reads and pulls");
          if (!place.ok()) return place.status();
          absl::StatusOr<v1::SumShareResponse> sums =
              SumShareHere(memory, *request, [&] { return !call->IsCancelled(); });
          if (sums.ok()) response->Swap(&*sums);
          return sums.status();
        },
        *call);
  }

 private:
  Status WithMemory(const std::string& job, const std::function<absl::Status(JobMemory&)>& answer,
                    const ServerContext& call, bool any_job = false) {
    if (absl::Status s = context_->Admit(call, job, any_job); !s.ok()) return ToGrpc(s);
    const absl::StatusOr<JobMemory*> memory = context_->Memory();
    return ToGrpc(memory.ok() ? answer(**memory) : memory.status());
  }

  Status RawPull(ServerContext* call, PullStream* stream) {
    v1::PullRequest request;
    if (!stream->Read(&request))
      return ToGrpc(absl::InvalidArgumentError("the request is missing or damaged"));
    if (absl::Status s = context_->Admit(*call, request.job(), /*any_job=*/true); !s.ok()) return ToGrpc(s);
    return ToGrpc(AnswerPull(context_, call, request, stream));
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
