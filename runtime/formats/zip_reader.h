// Reads zip files that hold their entries as they are ("stored"), as torch.save writes them. Trusts nothing:
// a file that two readers could understand in two ways is refused.
//
//   auto zip = ZipReader::Open("model.pt");
//   const ZipReader::Entry* entry = (*zip)->Find("archive/data.pkl");
//   absl::StatusOr<std::string> bytes = (*zip)->ReadEntry(*entry, 64 << 20);
//
// Checked at Open: that the directory lies within the file and ends it (no comment, nothing behind it), that
// every entry agrees with its own local header, that no two share a byte or a name; compressed, encrypted and
// multi-volume files are refused. zip64 is read. Checksums are checked by ReadEntry, and by whoever reads
// data in order with ExtendCrc32.
#ifndef SHERD_RUNTIME_FORMATS_ZIP_READER_H_
#define SHERD_RUNTIME_FORMATS_ZIP_READER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/unique_fd.h"

namespace sherd::formats {

// Immutable after Open: thread-safe. Holds one descriptor and the directory; never maps the file.
class ZipReader {
 public:
  struct Entry {
    std::string name;
    uint64_t data_begin = 0;  // in the file
    uint64_t bytes = 0;
    uint32_t crc = 0;
  };
  // A directory larger than this is refused: it has to fit in memory. Some 3 million entries of torch.save.
  static constexpr uint64_t kMaxDirectoryBytes = uint64_t{256} << 20;

  // FileError's; INVALID_ARGUMENT "<path>: ..." for everything that is malformed or refused. Blocks.
  static absl::StatusOr<std::unique_ptr<ZipReader>> Open(const std::string& path);

  const std::string& path() const { return path_; }
  // By place in the file.
  const std::vector<Entry>& entries() const { return entries_; }
  // nullptr if there is none. Valid as long as the reader.
  const Entry* Find(absl::string_view name) const;

  // Fills `out` from `offset` within the entry. OUT_OF_RANGE past its end; else as ReadExactly. Blocks.
  absl::Status Read(const Entry& entry, uint64_t offset, absl::Span<char> out) const;
  // All of a small entry. OUT_OF_RANGE if it has more than `max_bytes`; DATA_LOSS if its checksum does not
  // match.
  absl::StatusOr<std::string> ReadEntry(const Entry& entry, uint64_t max_bytes) const;

 private:
  struct Found;
  struct Directory {
    uint64_t begin = 0;
    uint64_t bytes = 0;
    uint64_t entries = 0;
  };
  ZipReader(std::string path, runtime::UniqueFd fd) : path_(std::move(path)), fd_(std::move(fd)) {}

  absl::StatusOr<Directory> FindDirectory(uint64_t file_bytes) const;
  absl::StatusOr<Directory> FindWide(Directory narrow, uint64_t end_begin) const;
  absl::StatusOr<std::vector<Found>> ReadDirectory(const Directory& directory) const;
  absl::Status CheckLocal(const Found& found, uint64_t limit, Entry* out) const;
  absl::Status Bad(absl::string_view why) const;
  absl::Status Load(uint64_t file_bytes);

  const std::string path_;
  const runtime::UniqueFd fd_;
  std::vector<Entry> entries_;
  absl::flat_hash_map<absl::string_view, size_t> by_name_;
};

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_ZIP_READER_H_
