// Where everything lies in a zip file that is to be written, before a byte of it is: entries as they are
// (never compressed), each one's data at a multiple of 64 bytes, so that it can be mapped as tensors. Sizes
// and offsets past 4 GiB, and more than 65534 entries, get zip64 records. Pure.
//
//   absl::StatusOr<ZipLayout> layout = ZipLayout::Make({{"archive/data.pkl", 250}, {"archive/data/0", 24}});
//   // at entries()[i].header_begin: LocalHeader(i, crc); at entries()[i].data_begin: the data;
//   // at directory_begin(): Directory(crcs), which ends the file
//
// Immutable: thread-safe. After APPNOTE.TXT 6.3.10; the padding stands in an extra field, as torch.save does.
#ifndef SHERD_RUNTIME_FORMATS_ZIP_LAYOUT_H_
#define SHERD_RUNTIME_FORMATS_ZIP_LAYOUT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace sherd::formats {

class ZipLayout {
 public:
  static constexpr uint64_t kAlignment = 64;

  struct Item {
    std::string name;
    uint64_t bytes = 0;
  };
  struct Entry {
    std::string name;
    uint64_t bytes = 0;
    uint64_t header_begin = 0;
    uint64_t data_begin = 0;  // a multiple of kAlignment
  };

  // Entries in the order given. INVALID_ARGUMENT for a name that is empty, twice there or longer than 65535
  // bytes, and for more than 2^63 - 1 bytes in all.
  static absl::StatusOr<ZipLayout> Make(std::vector<Item> items);

  const std::vector<Entry>& entries() const { return entries_; }
  uint64_t directory_begin() const { return directory_begin_; }
  uint64_t file_bytes() const { return file_bytes_; }

  // What stands from entries()[i].header_begin to its data_begin. `crc`: ExtendCrc32 of its data.
  std::string LocalHeader(size_t i, uint32_t crc) const;
  // What stands from directory_begin() to the end. REQUIRES one checksum for each entry.
  std::string Directory(absl::Span<const uint32_t> crcs) const;

 private:
  ZipLayout() = default;

  std::vector<Entry> entries_;
  uint64_t directory_begin_ = 0;
  uint64_t file_bytes_ = 0;
};

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_ZIP_LAYOUT_H_
