// The records of a zip file that holds its files as they are (method "stored"): their marks, sizes and the
// numbers in them. After APPNOTE.TXT 6.3.10 of PKWARE, sections 4.3 and 4.5.3. For zip_layout.cc, which
// writes them, and zip_reader.cc, which reads them.
#ifndef SHERD_RUNTIME_FORMATS_ZIP_RECORDS_H_
#define SHERD_RUNTIME_FORMATS_ZIP_RECORDS_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace sherd::formats::zip {

inline constexpr uint32_t kLocalMark = 0x04034b50;
inline constexpr uint32_t kCentralMark = 0x02014b50;
inline constexpr uint32_t kEndMark = 0x06054b50;
inline constexpr uint32_t kEnd64Mark = 0x06064b50;
inline constexpr uint32_t kLocatorMark = 0x07064b50;

// Bytes of each record without its variable part.
inline constexpr uint64_t kLocalBytes = 30;
inline constexpr uint64_t kCentralBytes = 46;
inline constexpr uint64_t kEndBytes = 22;
inline constexpr uint64_t kEnd64Bytes = 56;
inline constexpr uint64_t kLocatorBytes = 20;

// A 16- or 32-bit field with all bits set has its value in the 64-bit record ("zip64").
inline constexpr uint64_t kFull16 = 0xFFFF;
inline constexpr uint64_t kFull32 = 0xFFFFFFFF;

// Ids of extra fields: 64-bit sizes and offset; padding, as torch.save marks it.
inline constexpr uint16_t kZip64Extra = 0x0001;
inline constexpr uint16_t kPaddingExtra = 0x4246;

// Flags of an entry.
inline constexpr uint16_t kEncrypted = 1 << 0;
inline constexpr uint16_t kSizesFollow =
    1 << 3;  // checksum and sizes of the local header stand behind the data
inline constexpr uint16_t kStrongEncryption = 1 << 6;
inline constexpr uint16_t kUtf8 = 1 << 11;
inline constexpr uint16_t kMaskedHeaders = 1 << 13;

// Numbers are little-endian. REQUIRES: at + size of the number <= bytes.size().
template <typename T>
T Get(absl::string_view bytes, size_t at) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) {
    value |= static_cast<uint64_t>(static_cast<unsigned char>(bytes[at + i])) << (8 * i);
  }
  return static_cast<T>(value);
}
template <typename T>
void Put(T value, std::string* out) {
  for (size_t i = 0; i < sizeof(T); ++i) {
    out->push_back(static_cast<char>(static_cast<uint64_t>(value) >> (8 * i)));
  }
}

}  // namespace sherd::formats::zip

#endif  // SHERD_RUNTIME_FORMATS_ZIP_RECORDS_H_
