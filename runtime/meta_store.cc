#include "runtime/meta_store.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace sherd::runtime {
namespace {

constexpr size_t kMaxKey = 200;

bool IsPart(absl::string_view part) {
  return !part.empty() && part[0] != '.' && std::all_of(part.begin(), part.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  });
}

}  // namespace

absl::Status ValidateMetaKey(absl::string_view key) {
  const std::vector<absl::string_view> parts = absl::StrSplit(key, '/');
  if (key.size() > kMaxKey || !std::all_of(parts.begin(), parts.end(), IsPart)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "key '", key, "': use parts of letters, digits, '.', '_' and '-', none beginning with '.', ",
        "joined by '/', ", kMaxKey, " characters at most"));
  }
  return absl::OkStatus();
}

absl::Status NotLeading(absl::string_view key) {
  return absl::AbortedError(
      absl::StrCat("cannot change ", key, ": this process does not lead; nothing was changed"));
}

absl::Status ValidateElectionName(absl::string_view name) {
  if (name.size() > kMaxKey || !IsPart(name)) {
    return absl::InvalidArgumentError(
        absl::StrCat("election '", name, "': use letters, digits, '.', '_' and '-', the first not '.', ",
                     kMaxKey, " at most"));
  }
  return absl::OkStatus();
}

absl::Status ValidateCandidate(absl::string_view name, absl::string_view identity) {
  if (identity.size() > MetaStore::kMaxIdentityBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a candidate's identity has ", identity.size(),
                                                   " bytes, more than ", MetaStore::kMaxIdentityBytes));
  }
  return ValidateElectionName(name);
}

absl::Status ValidateMetaValue(absl::string_view key, absl::string_view value) {
  if (value.size() > MetaStore::kMaxValueBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the value of ", key, " has ", value.size(),
                                                   " bytes, more than ", MetaStore::kMaxValueBytes));
  }
  return absl::OkStatus();
}

}  // namespace sherd::runtime
