// CRC-32C (Castagnoli), as in iSCSI, ext4 and gRPC's peers: the checksum of chunks on the wire and of stored
// values.
//
//   uint32_t crc = Crc32c(data, n);
//   uint32_t same = ExtendCrc32c(Crc32c(data, 10), data + 10, n - 10);
//
// Crc32c of nothing is 0; of "123456789" it is 0xe3069283. Pure and thread-safe; about as fast as memory.
#ifndef SHERD_RUNTIME_CRC32C_H_
#define SHERD_RUNTIME_CRC32C_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace sherd::runtime {

// The checksum of what `crc` covers followed by `bytes` bytes at `data`.
uint32_t ExtendCrc32c(uint32_t crc, const void* data, size_t bytes);

inline uint32_t Crc32c(const void* data, size_t bytes) { return ExtendCrc32c(0, data, bytes); }
inline uint32_t Crc32c(absl::string_view data) { return ExtendCrc32c(0, data.data(), data.size()); }

// Copies `bytes` bytes from `from` to `to` (no overlap) and returns ExtendCrc32c(crc, ...) of exactly the
// bytes that were stored, even when another process writes to `from` meanwhile. Reads memory once.
uint32_t CopyExtendCrc32c(uint32_t crc, void* to, const void* from, size_t bytes);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_CRC32C_H_
