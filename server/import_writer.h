// Takes what this host owns of values that a peer sends, and makes it an import (server/import_segment.h). In
// a job of one host that is all of them.
//
//   auto w = ImportWriter::Create(memory, plan, /*by_step_record=*/false);
//   for (each chunk) (*w)->Append(chunk);
//   absl::Status whole = (*w)->Finish();
//   NameImportHere(*memory, (*w)->id(), id, generation);     // or (*w)->Keep(), for a STEP record
//
// Unless it was kept or has another name by then, the destructor removes the segment. Thread-compatible.
#ifndef SHERD_SERVER_IMPORT_WRITER_H_
#define SHERD_SERVER_IMPORT_WRITER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/types.h"
#include "proto/sherd/v1/common.pb.h"
#include "runtime/job_memory.h"
#include "server/import_plan.h"
#include "server/import_segment.h"

namespace sherd::server {

class ImportWriter {
 public:
  // Reserves the memory. `by_step_record`: it will be kept, and named by a STEP record soon; else it may take
  // as long as it takes, however many steps are made meanwhile. RESOURCE_EXHAUSTED: no room.
  static absl::StatusOr<std::unique_ptr<ImportWriter>> Create(const runtime::JobMemory* memory,
                                                              const ImportPlan& plan, bool by_step_record);
  ~ImportWriter();

  // The next bytes. INVALID_ARGUMENT: not the offset that follows, or past the end; DATA_LOSS: the crc does
  // not match.
  absl::Status Append(const v1::Chunk& chunk);

  // The same of bytes that were checked before. REQUIRES: not more than are to come.
  void Take(absl::string_view data);

  // INVALID_ARGUMENT if bytes are missing.
  absl::Status Finish() const;

  uint64_t id() const { return id_; }
  void Keep() { kept_ = true; }

 private:
  struct Part {
    uint64_t begin = 0;                    // in the stream
    std::pair<int64_t, int64_t> elements;  // of the tensor, that this host owns
    DType dtype = DType::kFloat32;
    uint64_t bytes() const {
      return static_cast<uint64_t>((elements.second - elements.first) * SizeOf(dtype));
    }
  };
  ImportWriter(const runtime::JobMemory* memory, uint64_t id, std::vector<Part> parts, ImportSegment segment)
      : memory_(memory), id_(id), parts_(std::move(parts)), segment_(std::move(segment)) {}
  uint64_t total() const { return parts_.back().begin + parts_.back().bytes(); }
  // Takes bytes of one part; returns how many.
  size_t TakeOfPart(absl::string_view data);

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
