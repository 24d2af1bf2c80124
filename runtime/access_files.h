// What opens the control port of a job over TCP: a token that callers show, and certificates.
//
//   AccessFiles files;                       // flags: --token-file and so on
//   files.FillFrom(&std::getenv);            // those not given: SHERD_TOKEN_FILE and so on
//   absl::StatusOr<Access> access = ReadAccess(files, AccessSide::kCaller);
//   context.AddMetadata(kTokenKey, access->Bearer());
//
// Unix sockets need none of it: the kernel says whose their peers are.
//
// Blocks on the file system. Thread-safe.
#ifndef SHERD_RUNTIME_ACCESS_FILES_H_
#define SHERD_RUNTIME_ACCESS_FILES_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sherd::runtime {

// The metadata key of the token.
inline constexpr char kTokenKey[] = "authorization";

// Paths; an empty one is not there.
struct AccessFiles {
  std::string token;        // its contents are the token
  std::string secret;       // the job's secret, of which the token is derived (RpcToken); `token` goes first
  std::string certificate;  // PEM, with its chain
  std::string key;
  std::string ca;  // PEM certificates that sign the other side's

  // Those that are empty, from SHERD_TOKEN_FILE, SHERD_SECRET_FILE, SHERD_TLS_CERT, SHERD_TLS_KEY and
  // SHERD_TLS_CA. A flag for the token or the secret keeps both variables out, and one for TLS all three.
  void FillFrom(const std::function<const char*(const char*)>& getenv);
};

// Contents of files, in PEM.
struct TlsFiles {
  std::string certificate;  // with its chain
  std::string key;
  std::string ca;  // peers must show a certificate signed by it; empty: none is asked for
  bool empty() const { return certificate.empty() && ca.empty(); }
};

struct Access {
  std::string token;  // empty: none
  TlsFiles tls;       // for TCP; empty: plain text
  // What callers show. REQUIRES: a token.
  std::string Bearer() const { return "Bearer " + token; }
};

// A server has a certificate of its own whenever it speaks TLS; a caller may have the CA's alone.
enum class AccessSide { kServer, kCaller };

// Reads what is named; nothing named is no access, and fine.
//   NOT_FOUND           names the flag and the file
//   PERMISSION_DENIED   others may open the token or the secret (secret_file.h)
//   INVALID_ARGUMENT    a token that is too short or not printable; a certificate without its key; something
//                       that is no regular file (of the token or the secret: FAILED_PRECONDITION)
absl::StatusOr<Access> ReadAccess(const AccessFiles& files, AccessSide side);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_ACCESS_FILES_H_
