#include "runtime/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <cstring>

namespace sherd::runtime {

uint32_t ExtendCrc32c(uint32_t crc, const void* data, size_t bytes) {
  constexpr size_t kMost = size_t{1} << 30;  // the library takes an int
  // It declares its input mutable and does not change it.
  auto* p = static_cast<unsigned char*>(const_cast<void*>(data));
  uint32_t state = ~crc;
  while (bytes > 0) {
    const size_t n = std::min(bytes, kMost);
    state = crc32_iscsi(p, static_cast<int>(n), state);
    p += n;
    bytes -= n;
  }
  return ~state;
}

uint32_t CopyExtendCrc32c(uint32_t crc, void* to, const void* from, size_t bytes) {
  // Pieces that are still in the nearest cache when the checksum reads them.
  constexpr size_t kPiece = 16 << 10;
  for (size_t at = 0; at < bytes; at += kPiece) {
    const size_t n = std::min(kPiece, bytes - at);
    uint8_t* const piece = static_cast<uint8_t*>(to) + at;
    std::memcpy(piece, static_cast<const uint8_t*>(from) + at, n);
    crc = ExtendCrc32c(crc, piece, n);
  }
  return crc;
}

}  // namespace sherd::runtime
