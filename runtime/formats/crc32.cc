#include "runtime/formats/crc32.h"

#include <isa-l/crc.h>

namespace sherd::formats {

uint32_t ExtendCrc32(uint32_t crc, absl::string_view bytes) {
  return crc32_gzip_refl(crc, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
}

}  // namespace sherd::formats
