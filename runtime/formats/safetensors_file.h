// safetensors files on disk: one reader, one writer. The format itself is safetensors_header.h.
//
//   auto reader = SafetensorsReader::Open("model.safetensors");
//   std::vector<char> bytes((*reader)->Find("wte")->bytes());
//   (*reader)->Read("wte", 0, absl::MakeSpan(bytes));
//
//   auto writer = SafetensorsWriter::Create("model.safetensors", *LayOut(specs, {}), {});
//   (*writer)->WriteAt("wte", 0, bytes);      // any order, any thread
//   (*writer)->Commit();                      // refuses unless every byte was written
#ifndef SHERD_RUNTIME_FORMATS_SAFETENSORS_FILE_H_
#define SHERD_RUNTIME_FORMATS_SAFETENSORS_FILE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/formats/atomic_file.h"
#include "runtime/formats/safetensors_header.h"
#include "runtime/formats/tensor_reader.h"
#include "runtime/formats/tensor_writer.h"
#include "runtime/mutex.h"
#include "runtime/unique_fd.h"

namespace sherd::formats {

// Immutable after Open: thread-safe. Holds one file descriptor, and the header in memory; never maps the
// file, so a file that shrinks underneath is an error and not a signal.
class SafetensorsReader : public TensorReader {
 public:
  // Reads and checks the header only. Errors: FileError's; INVALID_ARGUMENT "<path>: ..." for anything
  // malformed (see Parse) or not a regular file.
  static absl::StatusOr<std::unique_ptr<SafetensorsReader>> Open(const std::string& path);
  SafetensorsReader(const SafetensorsReader&) = delete;
  SafetensorsReader& operator=(const SafetensorsReader&) = delete;

  const std::string& path() const override { return path_; }
  const Header& header() const { return header_; }
  const std::vector<TensorEntry>& tensors() const override { return header_.tensors; }

 protected:
  absl::Status ReadWithin(const TensorEntry& tensor, uint64_t offset, absl::Span<char> out) const override;

 private:
  SafetensorsReader(std::string path, runtime::UniqueFd fd);

  const std::string path_;
  const runtime::UniqueFd fd_;
  Header header_;
};

// Writes one file that appears whole, at Commit. Thread-safe but for Commit, which must come after every
// other call has returned.
class SafetensorsWriter : public TensorWriter {
 public:
  // Reserves the space and writes the header. With options.resume, resumed() tells whether a partial file
  // with these very header bytes was found (put what identifies the content, as job and step, into the
  // metadata); its data may still be anything, so check what ReadBack yields, then MarkPresent it or write it
  // again. Errors as AtomicFile::Create.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(const std::string& path, FilePlan plan,
                                                                   AtomicFile::Options options);

  bool resumed() const { return resumed_; }
  const FilePlan& plan() const { return plan_; }

  // Writes bytes of one tensor from `offset` within it. NOT_FOUND; OUT_OF_RANGE past the tensor's end; else
  // FileError. Writing a byte again is allowed. Blocks.
  absl::Status WriteAt(absl::string_view name, uint64_t offset, absl::string_view bytes);

  // As WriteAt, for one who copies a file as a stream: `offset` counts from the first byte of the data and
  // the bytes may span tensors. Here they may come in any order.
  absl::Status WriteData(uint64_t offset, absl::string_view bytes) override;

  // Reads data back, `offset` as in WriteData. For a resumed file.
  absl::Status ReadBack(uint64_t offset, absl::Span<char> out) const;
  // Declares `bytes` bytes from `offset` (as in WriteData) to be in the file already.
  absl::Status MarkPresent(uint64_t offset, uint64_t bytes);
  // How many bytes of data are written or present.
  uint64_t present_bytes() const;

  // Puts the file in its place, durably. FAILED_PRECONDITION naming the first tensor and offset that nobody
  // wrote; else as AtomicFile::Commit.
  absl::Status Commit() override;

 private:
  SafetensorsWriter(std::unique_ptr<AtomicFile> file, FilePlan plan);

  absl::Status CheckData(uint64_t offset, uint64_t bytes) const;

  const std::unique_ptr<AtomicFile> file_;  // self-synchronised
  const FilePlan plan_;
  absl::flat_hash_map<absl::string_view, const TensorEntry*> by_name_;  // constant after Create
  bool resumed_ = false;                                                // constant after Create
  mutable runtime::Mutex mutex_;
  std::map<uint64_t, uint64_t> present_ ABSL_GUARDED_BY(mutex_);  // begin -> end of data; apart, not touching
};

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_SAFETENSORS_FILE_H_
