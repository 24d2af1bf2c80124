// Takes values that a peer sends, checks them, and makes them an import (server/import_segment.h).
//
//   auto w = ImportWriter::Create(memory, manifest, whole_model, /*by_step_record=*/false);
//   for (each chunk) (*w)->Append(chunk);
//   absl::Status whole = (*w)->Finish();
//   (*w)->RenameTo(id);             // or (*w)->Keep(): under (*w)->id(), for a STEP record
//
// Unless it is kept or renamed, the destructor removes the segment. Thread-compatible.
#ifndef SHERD_SERVER_IMPORT_WRITER_H_
#define SHERD_SERVER_IMPORT_WRITER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/types.h"
#include "proto/sherd/v1/common.pb.h"
#include "proto/sherd/v1/shard.pb.h"
#include "runtime/job_memory.h"
#include "server/import_segment.h"

namespace sherd::server {

class ImportWriter {
 public:
  // Checks the manifest against the job; reserves the memory. `whole_model`: every tensor must be there in
  // plane "param". `by_step_record`: it will be kept, and named by a STEP record soon; else it may take as
  // long as it takes, however many steps are made meanwhile.
  //   NOT_FOUND            no such tensor or plane
  //   INVALID_ARGUMENT     a shape differs, a tensor comes twice or is missing, a buffer, an unknown dtype
  //   RESOURCE_EXHAUSTED   no room
  static absl::StatusOr<std::unique_ptr<ImportWriter>> Create(const runtime::JobMemory* memory,
                                                              const v1::ImportManifest& manifest,
                                                              bool whole_model, bool by_step_record);
  ~ImportWriter();

  // The next bytes. INVALID_ARGUMENT: not the offset that follows, or past the end; DATA_LOSS: the crc does
  // not match.
  absl::Status Append(const v1::Chunk& chunk);

  // INVALID_ARGUMENT if bytes are missing, or an update count is not one.
  absl::Status Finish() const;

  uint64_t id() const { return id_; }
  void Keep() { kept_ = true; }
  absl::Status RenameTo(uint64_t id);

 private:
  struct Part {
    uint64_t begin = 0;  // in the stream
    int64_t numel = 0;
    DType dtype = DType::kFloat32;
    uint64_t bytes() const { return static_cast<uint64_t>(numel * SizeOf(dtype)); }
  };
  ImportWriter(const runtime::JobMemory* memory, uint64_t id, std::vector<Part> parts, ImportSegment segment)
      : memory_(memory), id_(id), parts_(std::move(parts)), segment_(std::move(segment)) {}
  uint64_t total() const { return parts_.back().begin + parts_.back().bytes(); }
  size_t Take(absl::string_view data);

  const runtime::JobMemory* const memory_;
  const uint64_t id_;
  const std::vector<Part> parts_;
  const ImportSegment segment_;
  uint64_t at_ = 0;    // bytes taken
  size_t part_ = 0;    // that holds at_
  std::string carry_;  // first byte of an element that a chunk's end has cut
  bool kept_ = false;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_IMPORT_WRITER_H_
