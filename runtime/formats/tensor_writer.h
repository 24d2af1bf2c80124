// A file of tensors that is written as one stream: what is the same for every format.
#ifndef SHERD_RUNTIME_FORMATS_TENSOR_WRITER_H_
#define SHERD_RUNTIME_FORMATS_TENSOR_WRITER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace sherd::formats {

// The file appears under its name, whole, at Commit; a writer destroyed before leaves nothing.
class TensorWriter {
 public:
  virtual ~TensorWriter() = default;

  // The bytes of the file's tensors, one after another in the order of its plan, row-major. `offset` counts
  // from the first byte of the first and must be what was written so far. OUT_OF_RANGE past the end; else
  // FileError. Blocks.
  virtual absl::Status WriteData(uint64_t offset, absl::string_view bytes) = 0;

  // Puts the file in its place, durably. FAILED_PRECONDITION if bytes are missing; else as
  // AtomicFile::Commit. Once only.
  virtual absl::Status Commit() = 0;
};

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_TENSOR_WRITER_H_
