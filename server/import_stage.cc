#include "server/import_stage.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "grpcpp/client_context.h"
#include "proto/status.h"
#include "runtime/crc32c.h"
#include "server/host_imports.h"
#include "server/import_names.h"
#include "server/import_stream.h"
#include "server/link_guard.h"

namespace sherd::server {
namespace {

constexpr size_t kChunkBytes = 1 << 20;
// Metadata of WriteShare: the host that asks.
constexpr char kFromHostKey[] = "sherd-from-host";

}  // namespace

// What one other host owns.
class ImportStage::Share {
 public:
  Share(const OtherHosts* others, int host) : others_(others), host_(host) {}
  ~Share() {
    if (stream_ == nullptr) return;
    context_.TryCancel();
    End().IgnoreError();
  }

  int host() const { return host_; }
  // Of the import there; after AwaitRoom.
  uint64_t id() const { return response_.import_id(); }

  absl::Status Begin(const v1::ImportManifest& manifest, int own_host, absl::Time deadline) {
    context_.AddMetadata(kFromHostKey, absl::StrCat(own_host));
    absl::StatusOr<std::unique_ptr<OtherHosts::Stub>> stub = others_->Prepare(host_, deadline, &context_);
    if (!stub.ok()) return stub.status();
    stub_ = *std::move(stub);
    stream_ = stub_->WriteShare(&context_);
    guard_.emplace(others_, host_, &context_);
    request_.mutable_begin()->set_job(others_->job());
    *request_.mutable_begin()->mutable_manifest() = manifest;
    return Write();
  }
  absl::Status AwaitRoom() { return Read(); }

  absl::Status Add(absl::string_view data) {
    while (!data.empty()) {
      const size_t n = std::min(data.size(), kChunkBytes - pending_.size());
      pending_.append(data.data(), n);
      data.remove_prefix(n);
      if (pending_.size() < kChunkBytes) continue;
      if (absl::Status s = Send(); !s.ok()) return s;
    }
    return absl::OkStatus();
  }
  absl::Status Commit() {
    if (absl::Status s = pending_.empty() ? absl::OkStatus() : Send(); !s.ok()) return s;
    request_.mutable_commit();
    return Write();
  }
  absl::Status AwaitWhole() { return Read(); }

 private:
  absl::Status Send() {
    v1::Chunk* const chunk = request_.mutable_chunk();
    chunk->set_offset(sent_);
    chunk->set_crc32c(runtime::Crc32c(pending_));
    sent_ += pending_.size();
    chunk->mutable_data()->swap(pending_);
    const absl::Status written = Write();
    pending_.clear();
    return written;
  }
  absl::Status Write() { return stream_->Write(request_) ? absl::OkStatus() : End(); }
  absl::Status Read() { return stream_->Read(&response_) ? absl::OkStatus() : End(); }

  // Why the call has ended.
  absl::Status End() {
    v1::WriteShareResponse rest;
    while (stream_->Read(&rest)) continue;
    const absl::Status status = FromGrpc(stream_->Finish());
    const std::string problem = guard_->End();
    stream_.reset();
    if (!problem.empty()) return absl::UnavailableError(problem);
    // Cancelled there: the link was not up as that host saw it.
    if (status.ok() || absl::IsCancelled(status))
      return absl::UnavailableError(absl::StrCat("host ", host_, " has ended the call: repeat it"));
    return OtherHosts::Named(host_, status);
  }

  const OtherHosts* const others_;
  const int host_;
  grpc::ClientContext context_;
  std::unique_ptr<OtherHosts::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WriteShareRequest, v1::WriteShareResponse>> stream_;
  std::optional<LinkGuard> guard_;
  v1::WriteShareRequest request_;
  v1::WriteShareResponse response_;
  std::string pending_;  // bytes that are to be sent next
  uint64_t sent_ = 0;
};

ImportStage::ImportStage(const OtherHosts* others, const runtime::JobMemory* memory)
    : others_(others), memory_(memory) {}
ImportStage::~ImportStage() = default;

absl::StatusOr<std::unique_ptr<ImportStage>> ImportStage::Begin(const OtherHosts* others,
                                                                const runtime::JobMemory* memory,
                                                                const v1::ImportManifest& manifest,
                                                                bool whole_model, bool by_step_record,
                                                                absl::Time deadline) {
  const absl::StatusOr<ImportPlan> plan = PlanImport(*memory, manifest, whole_model);
  if (!plan.ok()) return plan.status();
  std::unique_ptr<ImportStage> stage(new ImportStage(others, memory));
  // Of several hosts each gives it the id once all have the whole.
  absl::StatusOr<std::unique_ptr<ImportWriter>> own =
      ImportWriter::Create(memory, *plan, by_step_record && others == nullptr);
  if (!own.ok()) return own.status();
  stage->own_ = *std::move(own);
  stage->runs_ = RunsOf(*plan, *memory);
  for (const ImportRun& run : stage->runs_) stage->total_ += run.bytes;
  if (others == nullptr) return stage;
  for (int h = 0; h < memory->place().count; ++h) {
    if (h == memory->place().index) continue;
    stage->shares_.push_back(std::make_unique<Share>(others, h));
    if (absl::Status s = stage->shares_.back()->Begin(manifest, memory->place().index, deadline); !s.ok())
      return s;
  }
  for (const std::unique_ptr<Share>& share : stage->shares_) {
    if (absl::Status s = share->AwaitRoom(); !s.ok()) return s;
  }
  return stage;
}

ImportStage::Share* ImportStage::ShareOf(int host) const {
  return host == memory_->place().index ? nullptr : shares_[host - (host > memory_->place().index)].get();
}

absl::Status ImportStage::Append(const v1::Chunk& chunk) {
  if (absl::Status s = CheckChunk(chunk, at_, total_); !s.ok()) return s;
  absl::string_view left = chunk.data();
  at_ += left.size();
  while (!left.empty()) {
    const ImportRun& run = runs_[run_];
    const absl::string_view piece = left.substr(0, std::min<uint64_t>(left.size(), run.bytes - in_run_));
    const auto goes_to = [&](int host) {
      return run.host == ImportRun::kAllHosts || host % memory_->grid().group == run.host;
    };
    if (goes_to(memory_->place().index)) own_->Take(piece);
    for (const std::unique_ptr<Share>& share : shares_) {
      if (!goes_to(share->host())) continue;
      if (absl::Status s = share->Add(piece); !s.ok()) return s;
    }
    left.remove_prefix(piece.size());
    in_run_ += piece.size();
    if (in_run_ == run.bytes) {
      ++run_;
      in_run_ = 0;
    }
  }
  return absl::OkStatus();
}

absl::Status ImportStage::Finish() {
  if (at_ != total_) {
    return absl::InvalidArgumentError(
        absl::StrCat("the manifest has ", total_, " bytes but only ", at_, " were sent"));
  }
  for (const std::unique_ptr<Share>& share : shares_) {
    if (absl::Status s = share->Commit(); !s.ok()) return s;
  }
  for (const std::unique_ptr<Share>& share : shares_) {
    if (absl::Status s = share->AwaitWhole(); !s.ok()) return s;
  }
  return own_->Finish();
}

void ImportStage::AddParts(v1::ProposeImportRequest* request) const {
  const auto add = [&](int host, uint64_t id) {
    v1::ProposeImportRequest::Part* const part = request->add_parts();
    part->set_host(host);
    part->set_import_id(id);
  };
  add(memory_->place().index, own_->id());
  for (const std::unique_ptr<Share>& share : shares_) add(share->host(), share->id());
}

absl::StatusOr<uint64_t> ImportStage::NameForStep(absl::Time deadline) {
  if (others_ == nullptr) {
    own_->Keep();
    return own_->id();
  }
  const uint64_t id = ImportSegment::IdForStep();
  HostImports elsewhere(others_);
  for (const std::unique_ptr<Share>& share : shares_) elsewhere.Set(share->host(), share->id());
  absl::Status named = elsewhere.Name(id, 0, deadline);
  if (named.ok()) named = NameImportHere(*memory_, own_->id(), id, 0);
  if (!named.ok()) return named;
  return id;
}

absl::Status TakeShare(const OtherHosts* others, const runtime::JobMemory* memory,
                       const v1::WriteShareRequest::Begin& begin, grpc::ServerContext* call,
                       grpc::ServerReaderWriter<v1::WriteShareResponse, v1::WriteShareRequest>* stream) {
  const auto from = call->client_metadata().find(kFromHostKey);
  int host = -1;
  if (others == nullptr || from == call->client_metadata().end() ||
      !absl::SimpleAtoi(absl::string_view(from->second.data(), from->second.size()), &host) || host < 0 ||
      host >= memory->place().count || host == memory->place().index) {
    return absl::InvalidArgumentError("WriteShare is a call between hosts of one job");
  }
  const absl::StatusOr<ImportPlan> plan = PlanImport(*memory, begin.manifest(), /*whole_model=*/false);
  if (!plan.ok()) return plan.status();
  const absl::StatusOr<std::unique_ptr<ImportWriter>> own =
      ImportWriter::Create(memory, *plan, /*by_step_record=*/false);
  if (!own.ok()) return own.status();
  // TCP would not say that the caller is out of reach.
  LinkGuard guard(others, host, [call] { call->TryCancel(); });
  v1::WriteShareResponse response;
  response.set_import_id((*own)->id());
  if (!stream->Write(response)) return absl::CancelledError("the caller has gone");
  if (absl::Status s = TakeImport<v1::WriteShareRequest>(stream, **own); !s.ok()) return s;
  if (!stream->Write(response)) return absl::CancelledError("the caller has gone");
  v1::WriteShareRequest more;
  if (!stream->Read(&more)) return absl::OkStatus();
  return absl::InvalidArgumentError("nothing comes after `commit`");
}

}  // namespace sherd::server
