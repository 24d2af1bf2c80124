// Large files written once, in one go, past the page cache, and summed: what a checkpoint's parts are.
//
//   auto file = SummedFileWriter::Create("step-40/part.safetensors", bytes);
//   absl::Span<char> room = (*file)->Room();  produce(room);  (*file)->Advance(room.size());
//   absl::StatusOr<FileSum> sum = (*file)->Finish();         // durable; size and crc32c, whole and by chunk
//
//   auto reader = SummedFileReader::Open(path, *sum);         // DATA_LOSS if the size differs
//   auto chunk = (*reader)->Read(17, buffer);                 // DATA_LOSS names the bytes
//
// With O_DIRECT where the file system has it, so that neither dirty pages nor the cache of a state that
// nobody reads again gets in the way of training; elsewhere each chunk is pushed out soon after it was
// written. Which is faster is measured in bench/README.md.
#ifndef SHERD_RUNTIME_FORMATS_SUMMED_FILE_H_
#define SHERD_RUNTIME_FORMATS_SUMMED_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/mutex.h"
#include "runtime/unique_fd.h"

namespace sherd::formats {

// Bytes that are written, read and summed together. It stands in files only through FileSum::chunk_bytes.
inline constexpr int64_t kSummedChunkBytes = 4 << 20;
// Sizes and offsets that O_DIRECT takes on every disk in use.
inline constexpr int64_t kDirectAlignment = 4096;

struct FileSum {
  int64_t bytes = 0;
  uint32_t crc32c = 0;  // of the whole file
  int64_t chunk_bytes = kSummedChunkBytes;
  std::vector<uint32_t> chunk_crc32c;  // of each chunk_bytes; the last may be shorter
};

// Memory aligned for O_DIRECT. Movable.
class DirectBuffer {
 public:
  explicit DirectBuffer(int64_t bytes);
  char* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(char* p) const;
  };
  std::unique_ptr<char, Free> memory_;
};

enum class FileAccess { kDirect, kBuffered };

// Thread-compatible: one producer. A thread of its own writes while the next chunk is produced.
class SummedFileWriter {
 public:
  // Makes `path`, which must not be there; its directory must. `bytes`: how long it will be, so that a disk
  // without that much room is an error at once. Errors: FileError's.
  static absl::StatusOr<std::unique_ptr<SummedFileWriter>> Create(const std::string& path, int64_t bytes,
                                                                  FileAccess access = FileAccess::kDirect);
  // Removes the file unless Finish was OK.
  ~SummedFileWriter();
  SummedFileWriter(const SummedFileWriter&) = delete;
  SummedFileWriter& operator=(const SummedFileWriter&) = delete;

  // Where the next bytes go, at least one and not past the end of a chunk. Waits for the disk when it is
  // behind.
  absl::Span<char> Room();
  // The first `bytes` of Room() are produced. The first error of an earlier write, which ends the file.
  absl::Status Advance(int64_t bytes);
  // Copies.
  absl::Status Append(absl::string_view bytes);

  // Writes what is left and syncs. INTERNAL if the length is not what Create was told.
  absl::StatusOr<FileSum> Finish();

 private:
  static constexpr int kBuffers = 3;
  SummedFileWriter(std::string path, runtime::UniqueFd fd, bool direct, int64_t bytes);
  void WriteLoop();
  absl::Status WriteChunk(const char* data, int64_t offset, int64_t bytes);
  void HandOver();

  const std::string path_;
  const runtime::UniqueFd fd_;
  const bool direct_;
  const int64_t bytes_;
  std::vector<DirectBuffer> buffers_;
  // The producer's.
  FileSum sum_;
  int64_t filled_ = 0;      // of the chunk in hand
  uint32_t chunk_crc_ = 0;  // of these
  bool finished_ = false;

  mutable runtime::Mutex mu_;
  runtime::CondVar changed_;
  int64_t handed_ ABSL_GUARDED_BY(mu_) = 0;                      // chunks given to the thread
  int64_t written_ ABSL_GUARDED_BY(mu_) = 0;                     // chunks it has dealt with
  int64_t last_bytes_ ABSL_GUARDED_BY(mu_) = kSummedChunkBytes;  // of the chunk handed over last
  bool end_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

// Immutable: thread-safe.
class SummedFileReader {
 public:
  // FileError's; DATA_LOSS if the file has not sum.bytes bytes.
  static absl::StatusOr<std::unique_ptr<SummedFileReader>> Open(const std::string& path, FileSum sum,
                                                                FileAccess access = FileAccess::kDirect);

  const std::string& path() const { return path_; }
  const FileSum& sum() const { return sum_; }
  int64_t chunks() const { return static_cast<int64_t>(sum_.chunk_crc32c.size()); }
  // Memory that Read needs.
  int64_t buffer_bytes() const;

  // Chunk `i`, checked; it lies in `buffer`. DATA_LOSS names file and bytes. Blocks.
  absl::StatusOr<absl::Span<const char>> Read(int64_t i, const DirectBuffer& buffer) const;

 private:
  SummedFileReader(std::string path, runtime::UniqueFd fd, bool direct, FileSum sum)
      : path_(std::move(path)), fd_(std::move(fd)), direct_(direct), sum_(std::move(sum)) {}

  const std::string path_;
  const runtime::UniqueFd fd_;
  const bool direct_;
  const FileSum sum_;
};

// OK if it can be that of a file: chunk size in bounds and a sum for every chunk. INVALID_ARGUMENT.
absl::Status CheckFileSum(const FileSum& sum);

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_SUMMED_FILE_H_
