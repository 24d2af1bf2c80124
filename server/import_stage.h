// Values that a peer sends in one stream, on their way to the hosts that own them: each host has its share in
// an import of its own, which goes with the stage unless it has got a name by then.
//
//   auto stage = ImportStage::Begin(others, memory, manifest, whole_model, by_step_record, deadline);
//   for (each chunk) (*stage)->Append(chunk);
//   absl::Status whole = (*stage)->Finish();                // on all hosts
//   (*stage)->AddParts(&request);                           // ProposeImport; or NameForStep()
//
// What others own goes on to a server of each as it comes (WriteShare), a MiB at a time: whoever sends waits
// for the slowest host. A share there lasts as long as its call: whichever of the two dies, it goes.
//
// Thread-compatible; blocks on other hosts. Errors of one name it.
#ifndef SHERD_SERVER_IMPORT_STAGE_H_
#define SHERD_SERVER_IMPORT_STAGE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/sync_stream.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "runtime/job_memory.h"
#include "server/import_plan.h"
#include "server/import_writer.h"
#include "server/other_hosts.h"

namespace sherd::server {

class ImportStage {
 public:
  // Checks the manifest, then makes room everywhere. `others` is borrowed; null in a job of one host. Errors
  // are PlanImport's and ImportWriter::Create's; UNAVAILABLE: a host cannot be reached.
  static absl::StatusOr<std::unique_ptr<ImportStage>> Begin(const OtherHosts* others,
                                                            const runtime::JobMemory* memory,
                                                            const v1::ImportManifest& manifest,
                                                            bool whole_model, bool by_step_record,
                                                            absl::Time deadline);
  // Ends the calls to other hosts.
  ~ImportStage();

  // The next bytes of the stream; errors are CheckChunk's. UNAVAILABLE: a host has gone.
  absl::Status Append(const v1::Chunk& chunk);
  // INVALID_ARGUMENT: bytes are missing.
  absl::Status Finish();

  // After Finish: what the coordinator needs to know.
  void AddParts(v1::ProposeImportRequest* request) const;
  // After Finish: the id under which STEP records may name the values, which then stay without the stage.
  absl::StatusOr<uint64_t> NameForStep(absl::Time deadline);

 private:
  class Share;
  ImportStage(const OtherHosts* others, const runtime::JobMemory* memory);
  Share* ShareOf(int host) const;

  const OtherHosts* const others_;
  const runtime::JobMemory* const memory_;
  std::unique_ptr<ImportWriter> own_;
  std::vector<std::unique_ptr<Share>> shares_;  // of the other hosts, in their order
  std::vector<ImportRun> runs_;
  uint64_t at_ = 0, total_ = 0;  // bytes of the whole stream
  size_t run_ = 0;               // that holds at_
  uint64_t in_run_ = 0;
};

// The other end, WriteShare in checkpoint.proto: returns when the caller has ended the call.
absl::Status TakeShare(const OtherHosts* others, const runtime::JobMemory* memory,
                       const v1::WriteShareRequest::Begin& begin, grpc::ServerContext* call,
                       grpc::ServerReaderWriter<v1::WriteShareResponse, v1::WriteShareRequest>* stream);

}  // namespace sherd::server

#endif  // SHERD_SERVER_IMPORT_STAGE_H_
