#include "runtime/hmac.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

namespace sherd::runtime {

Digest256 HmacSha256(absl::string_view key, absl::string_view message) {
  Digest256 digest = {};
  unsigned int bytes = 0;
  const unsigned char* done =
      HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
           reinterpret_cast<const unsigned char*>(message.data()), message.size(), digest.data(), &bytes);
  if (done == nullptr || bytes != digest.size()) {
    // Only when libcrypto cannot allocate, or was built without SHA-256: nothing could be trusted then.
    std::fprintf(stderr, "libcrypto cannot compute HMAC-SHA256\n");
    std::abort();
  }
  return digest;
}

bool EqualInConstantTime(absl::string_view a, absl::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

void FillRandom(void* to, size_t bytes) {
  char* next = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = ::getrandom(next, bytes, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      std::perror("getrandom");
      std::abort();
    }
    next += got;
    bytes -= static_cast<size_t>(got);
  }
}

void Forget(void* memory, size_t bytes) { OPENSSL_cleanse(memory, bytes); }

}  // namespace sherd::runtime
