#include "runtime/access_files.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/formats/atomic_file.h"
#include "runtime/secret_file.h"

namespace sherd::runtime {
namespace {

constexpr uint64_t kMaxPemBytes = 1 << 20;

absl::Status ReadPem(const char* flag, const std::string& path, std::string* text) {
  if (path.empty()) return absl::OkStatus();
  absl::StatusOr<std::string> read = formats::ReadWhole(path, kMaxPemBytes);
  if (!read.ok() && !absl::IsOutOfRange(read.status()))
    return absl::Status(read.status().code(), absl::StrCat(flag, ": ", read.status().message()));
  if (read.ok() && absl::StrContains(*read, "-----BEGIN ")) {
    *text = *std::move(read);
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(flag, ": ", path, " is not a PEM file"));
}

absl::StatusOr<std::string> ReadToken(const AccessFiles& files) {
  if (files.token.empty() && files.secret.empty()) return std::string();
  absl::StatusOr<Secret> secret = ReadSecretFile(files.token.empty() ? files.secret : files.token);
  const char* const flag = files.token.empty() ? "--secret-file" : "--token-file";
  if (!secret.ok())
    return absl::Status(secret.status().code(), absl::StrCat(flag, ": ", secret.status().message()));
  if (files.token.empty()) return RpcToken(*secret);
  const absl::string_view token = secret->bytes();
  if (!std::all_of(token.begin(), token.end(), [](unsigned char c) { return c > ' ' && c <= '~'; })) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, ": ", files.token,
                     " holds more than printable characters: make one with `openssl rand -hex 32`"));
  }
  return std::string(token);
}

}  // namespace

void AccessFiles::FillFrom(const std::function<const char*(const char*)>& getenv) {
  const auto fill = [&](const char* name, std::string* path) {
    if (const char* value = getenv(name); value != nullptr) *path = value;
  };
  if (token.empty() && secret.empty()) {
    fill("SHERD_TOKEN_FILE", &token);
    fill("SHERD_SECRET_FILE", &secret);
  }
  if (certificate.empty() && key.empty() && ca.empty()) {
    fill("SHERD_TLS_CERT", &certificate);
    fill("SHERD_TLS_KEY", &key);
    fill("SHERD_TLS_CA", &ca);
  }
}

absl::StatusOr<Access> ReadAccess(const AccessFiles& files, AccessSide side) {
  Access access;
  absl::StatusOr<std::string> token = ReadToken(files);
  if (!token.ok()) return token.status();
  access.token = *std::move(token);
  if (absl::Status s = ReadPem("--tls-cert", files.certificate, &access.tls.certificate); !s.ok()) return s;
  if (absl::Status s = ReadPem("--tls-key", files.key, &access.tls.key); !s.ok()) return s;
  if (absl::Status s = ReadPem("--tls-ca", files.ca, &access.tls.ca); !s.ok()) return s;
  if (files.certificate.empty() != files.key.empty())
    return absl::InvalidArgumentError("--tls-cert and --tls-key go together");
  if (side == AccessSide::kServer && files.certificate.empty() && !files.ca.empty())
    return absl::InvalidArgumentError("--tls-cert and --tls-key go together, and --tls-ca needs both");
  return access;
}

}  // namespace sherd::runtime
