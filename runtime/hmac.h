// What proves that a peer knows a secret without saying it: HMAC-SHA256 (RFC 2104, FIPS 180-4) by OpenSSL's
// libcrypto, a comparison that tells nothing by the time it takes, and random bytes.
//
//   const Digest256 proof = HmacSha256(secret.bytes(), absl::StrCat("dialer", nonces));
//   if (!EqualInConstantTime(AsBytes(proof), received)) refuse;
//
// Thread-safe.
#ifndef SHERD_RUNTIME_HMAC_H_
#define SHERD_RUNTIME_HMAC_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace sherd::runtime {

using Digest256 = std::array<uint8_t, 32>;

inline absl::string_view AsBytes(const Digest256& digest) {
  return absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size());
}

Digest256 HmacSha256(absl::string_view key, absl::string_view message);

// The time depends on the sizes alone. False when they differ.
bool EqualInConstantTime(absl::string_view a, absl::string_view b);

// From the kernel's generator (getrandom); blocks only until it was seeded once after boot.
void FillRandom(void* to, size_t bytes);

// Overwrites memory that held a secret, which the compiler may not leave out.
void Forget(void* memory, size_t bytes);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_HMAC_H_
