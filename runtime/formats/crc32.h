// CRC-32 as zip files state it (ISO 3309, the polynomial of Ethernet and gzip; crc32c.h is another one).
//
//   uint32_t crc = 0;
//   for (each piece, in order) crc = ExtendCrc32(crc, piece);
//
// Pure; thread-safe.
#ifndef SHERD_RUNTIME_FORMATS_CRC32_H_
#define SHERD_RUNTIME_FORMATS_CRC32_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace sherd::formats {

// The checksum of what `crc` stands for (0: nothing) with `bytes` behind it.
uint32_t ExtendCrc32(uint32_t crc, absl::string_view bytes);

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_CRC32_H_
