#include "runtime/link_protocol.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/crc32c.h"

namespace sherd::runtime {
namespace {

constexpr uint32_t kFrameMagic = 0x31464c53;  // "SLF1"
constexpr size_t kCheckedBytes = kFrameHeaderBytes - sizeof(uint32_t);

void PutLittle(char* to, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) to[i] = static_cast<char>(value >> (8 * i));
}

uint64_t GetLittle(const char* from, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) value |= uint64_t{static_cast<unsigned char>(from[i])} << (8 * i);
  return value;
}

}  // namespace

void PutU32(char* to, uint32_t value) { PutLittle(to, value, 4); }
void PutU64(char* to, uint64_t value) { PutLittle(to, value, 8); }
uint32_t GetU32(const char* from) { return static_cast<uint32_t>(GetLittle(from, 4)); }
uint64_t GetU64(const char* from) { return GetLittle(from, 8); }

std::string ToString(const LinkIdentity& identity) {
  return absl::StrCat("host ", identity.host, ", incarnation ", identity.incarnation, ", epoch ",
                      identity.epoch, " of job ", identity.job_uuid);
}

void EncodeIdentity(const LinkIdentity& identity, char* to) {
  std::memset(to, 0, kIdentityBytes);
  identity.job_uuid.copy(to, kJobUuidBytes);
  PutU32(to + 36, identity.host);
  PutU64(to + 40, identity.incarnation);
  PutU64(to + 48, identity.epoch);
  PutU64(to + 56, identity.layout_hash);
}

absl::StatusOr<LinkIdentity> DecodeIdentity(absl::string_view bytes) {
  LinkIdentity identity;
  identity.job_uuid = std::string(bytes.substr(0, kJobUuidBytes));
  for (char c : identity.job_uuid) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '-')
      return absl::InvalidArgumentError("the identity names no job");
  }
  identity.host = GetU32(bytes.data() + 36);
  identity.incarnation = GetU64(bytes.data() + 40);
  identity.epoch = GetU64(bytes.data() + 48);
  identity.layout_hash = GetU64(bytes.data() + 56);
  return identity;
}

void EncodeFrameHeader(const FrameHeader& header, char* to) {
  PutU32(to, kFrameMagic);
  PutLittle(to + 4, header.type, 2);
  PutLittle(to + 6, header.flags, 2);
  PutU32(to + 8, header.stream);
  PutU32(to + 12, header.part);
  PutU64(to + 16, header.mark);
  PutU64(to + 24, header.offset);
  PutU64(to + 32, header.length);
  PutU32(to + 40, 0);
  PutU32(to + kCheckedBytes, Crc32c(to, kCheckedBytes));
}

absl::StatusOr<FrameHeader> DecodeFrameHeader(const char* from, uint64_t max_payload) {
  if (GetU32(from) != kFrameMagic || GetU32(from + kCheckedBytes) != Crc32c(from, kCheckedBytes) ||
      GetU32(from + 40) != 0) {
    return absl::DataLossError(absl::StrFormat(
        "no frame header (it begins with %08x): the stream is damaged or of another version", GetU32(from)));
  }
  FrameHeader header;
  header.type = static_cast<uint16_t>(GetLittle(from + 4, 2));
  header.flags = static_cast<uint16_t>(GetLittle(from + 6, 2));
  header.stream = GetU32(from + 8);
  header.part = GetU32(from + 12);
  header.mark = GetU64(from + 16);
  header.offset = GetU64(from + 24);
  header.length = GetU64(from + 32);
  if (header.length > max_payload) {
    return absl::ResourceExhaustedError(absl::StrCat("a frame of type ", header.type, " announces ",
                                                     header.length, " bytes; at most ", max_payload,
                                                     " are taken"));
  }
  return header;
}

}  // namespace sherd::runtime
