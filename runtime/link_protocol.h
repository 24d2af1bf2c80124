// What two hosts say to each other on a data connection: who they are, and frames. Pure: bytes in, bytes out.
//
//   char bytes[kFrameHeaderBytes];
//   EncodeFrameHeader(header, bytes);
//   absl::StatusOr<FrameHeader> same = DecodeFrameHeader(bytes, /*max_payload=*/64 << 20);
//
// A frame is a header of fixed size, then `length` bytes of payload. All numbers are little-endian. The
// header has a checksum and a magic word, so a stream that got out of step is an error and never a huge
// allocation. Thread-safe.
#ifndef SHERD_RUNTIME_LINK_PROTOCOL_H_
#define SHERD_RUNTIME_LINK_PROTOCOL_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sherd::runtime {

// Who speaks.
struct LinkIdentity {
  // Of the job, 36 characters: JobDir::uuid() of the first host, which the others learn when they join.
  std::string job_uuid;
  // Index of the host, 0 is the first.
  uint32_t host = 0;
  // Of the host's agent: grows whenever another process takes the role.
  uint64_t incarnation = 0;
  // Membership epoch that the host knows.
  uint64_t epoch = 0;
  // Of the job's layout; 0 while it is not known.
  uint64_t layout_hash = 0;

  friend bool operator==(const LinkIdentity& a, const LinkIdentity& b) {
    return a.job_uuid == b.job_uuid && a.host == b.host && a.incarnation == b.incarnation &&
           a.epoch == b.epoch && a.layout_hash == b.layout_hash;
  }
};

// For messages: "host 1, incarnation 3, epoch 7 of job 6f1c...".
std::string ToString(const LinkIdentity& identity);

inline constexpr size_t kJobUuidBytes = 36;
inline constexpr size_t kIdentityBytes = 64;

// REQUIRES: job_uuid has kJobUuidBytes characters. Writes kIdentityBytes.
void EncodeIdentity(const LinkIdentity& identity, char* to);
// INVALID_ARGUMENT: the uuid is not printable. REQUIRES: kIdentityBytes bytes.
absl::StatusOr<LinkIdentity> DecodeIdentity(absl::string_view bytes);

// Frames of this type say that the sender lives; Link makes and takes them itself.
inline constexpr uint16_t kHeartbeatFrame = 0;

// Everything but `length` is its user's to give meaning to.
struct FrameHeader {
  uint16_t type = 1;  // 1..65535
  uint16_t flags = 0;
  uint32_t stream = 0;  // a unit, rank or slot
  uint32_t part = 0;
  uint64_t mark = 0;
  uint64_t offset = 0;
  uint64_t length = 0;  // bytes of payload behind the header

  friend bool operator==(const FrameHeader& a, const FrameHeader& b) {
    return a.type == b.type && a.flags == b.flags && a.stream == b.stream && a.part == b.part &&
           a.mark == b.mark && a.offset == b.offset && a.length == b.length;
  }
};

inline constexpr size_t kFrameHeaderBytes = 48;

// Writes kFrameHeaderBytes.
void EncodeFrameHeader(const FrameHeader& header, char* to);

// Reads kFrameHeaderBytes.
//   DATA_LOSS           these bytes are no header: the stream is out of step or damaged
//   RESOURCE_EXHAUSTED  `length` is above `max_payload`: names both
absl::StatusOr<FrameHeader> DecodeFrameHeader(const char* from, uint64_t max_payload);

// Little-endian words of the messages.
void PutU32(char* to, uint32_t value);
void PutU64(char* to, uint64_t value);
uint32_t GetU32(const char* from);
uint64_t GetU64(const char* from);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_LINK_PROTOCOL_H_
