#include "server/checkpoint_manifest.h"

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "google/protobuf/util/json_util.h"
#include "proto/convert.h"
#include "runtime/crc32c.h"
#include "runtime/formats/atomic_file.h"

namespace sherd::server {
namespace {

// A million tensors with long names stay far below.
constexpr uint64_t kMostManifestBytes = uint64_t{1} << 30;
constexpr uint64_t kMostLatestBytes = 4096;

constexpr char kHeadFormat[] = "{\"sherd_checkpoint\":%d,\"crc32c\":\"%08x\",\n";

absl::Status Damaged(const std::string& path, absl::string_view how) {
  return absl::DataLossError(absl::StrCat(path, " is damaged: ", how));
}

// "directory has: step-40, step-20" for the end of a message.
std::string Others(const std::string& directory, const std::string& not_this) {
  std::vector<std::string> tags;
  for (const FoundCheckpoint& c : FindCheckpoints(directory)) {
    if (c.tag != not_this && tags.size() < 5) tags.push_back(c.tag);
  }
  if (tags.empty()) return "; there is no other checkpoint in the directory";
  return absl::StrCat("; restore another one with --tag: ", absl::StrJoin(tags, ", "));
}

absl::Status With(const absl::Status& status, const std::string& more) {
  return absl::Status(status.code(), absl::StrCat(status.message(), more));
}

// What counts steps or updates has to fit a mark (core/mark.h), and be far from an overflow.
constexpr uint64_t kMostCount = uint64_t{1} << 39;

// Numbers that a job would go on with.
absl::Status CheckNumbers(const std::string& path, const v1::CheckpointManifest& m) {
  absl::Status bad;
  const auto count = [&](const char* what, uint64_t value) {
    if (value > kMostCount)
      bad.Update(Damaged(path, absl::StrCat(what, " is ", value, ": that is no count")));
  };
  const auto number = [&](const char* what, double value) {
    if (!std::isfinite(value)) bad.Update(Damaged(path, absl::StrCat(what, " is ", value)));
  };
  count("step", m.step());
  count("updates", m.updates());
  for (const uint64_t n : m.update_counts()) count("an update count", n);
  for (const auto& group : m.groups()) {
    for (const double x : group.scalars()) number("a scalar of a group", x);
  }
  const auto& scale = m.loss_scale();
  number("loss_scale.scale", scale.scale());
  if (scale.scale() <= 0)
    bad.Update(Damaged(path, absl::StrCat("loss_scale.scale is ", scale.scale(), ", not above 0")));
  count("loss_scale.i", static_cast<uint64_t>(scale.i()));
  count("loss_scale.last", static_cast<uint64_t>(scale.last()) + 1);  // -1: never
  count("loss_scale.skipped", scale.skipped());
  return bad;
}

absl::Status CheckFields(const std::string& path, const v1::CheckpointManifest& m, const JobSpec& spec) {
  if (m.servers() < 1 || m.servers() > 65536 || m.parts_size() != m.servers()) {
    return Damaged(path, absl::StrCat("it has ", m.parts_size(), " parts of ", m.servers(), " servers"));
  }
  if (m.update_counts_size() != static_cast<int>(spec.layout.tensors().size())) {
    return Damaged(path, absl::StrCat("it has ", m.update_counts_size(), " update counts for ",
                                      spec.layout.tensors().size(), " tensors"));
  }
  if (m.planes_size() < 1 || m.planes(0) != "param") return Damaged(path, "it has no plane \"param\"");
  const auto check = [&](const v1::CheckpointManifest::File& file) {
    const std::string& name = file.name();
    const bool printable = std::all_of(name.begin(), name.end(), absl::ascii_isgraph);
    if (name.empty() || name[0] == '.' || name.find('/') != name.npos || !printable) {
      return Damaged(path, absl::StrCat("\"", absl::CHexEscape(name), "\" is no name of a file beside it"));
    }
    return SumOf(file).status();
  };
  for (const v1::CheckpointManifest::File& file : m.parts()) {
    if (absl::Status s = check(file); !s.ok()) return s;
  }
  if (absl::Status s = CheckNumbers(path, m); !s.ok()) return s;
  return check(m.state());
}

absl::StatusOr<std::string> ReadLatest(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kLatestName);
  absl::StatusOr<std::string> text = formats::ReadWhole(path, kMostLatestBytes);
  if (absl::IsNotFound(text.status())) {
    const std::vector<FoundCheckpoint> found = FindCheckpoints(directory);
    if (found.empty()) {
      return absl::NotFoundError(
          absl::StrCat(directory, " has no checkpoint: no save was completed there; correct the path"));
    }
    return absl::NotFoundError(absl::StrCat(path, " is missing", Others(directory, "")));
  }
  if (!text.ok()) return text.status();
  std::string tag(absl::StripSuffix(*text, "\n"));
  if (!CheckTag(tag).ok()) return With(Damaged(path, "it names no checkpoint"), Others(directory, ""));
  return tag;
}

absl::StatusOr<SavedCheckpoint> OpenTag(const std::string& directory, const std::string& tag) {
  SavedCheckpoint saved;
  saved.tag = tag;
  saved.path = absl::StrCat(directory, "/", tag);
  const std::string manifest = absl::StrCat(saved.path, "/", kManifestName);
  struct stat info;
  if (::stat(saved.path.c_str(), &info) != 0 && errno == ENOENT)
    return absl::NotFoundError(absl::StrCat("there is no checkpoint ", saved.path));
  absl::StatusOr<std::string> text = formats::ReadWhole(manifest, kMostManifestBytes);
  if (absl::IsNotFound(text.status())) {
    return absl::DataLossError(
        absl::StrCat(manifest, " is missing: that checkpoint was never completed, or was damaged since"));
  }
  if (!text.ok()) return text.status();
  absl::StatusOr<v1::CheckpointManifest> decoded = DecodeManifest(manifest, *text);
  if (!decoded.ok()) return decoded.status();
  saved.manifest = *std::move(decoded);
  absl::StatusOr<JobSpec> spec = JobSpecFromProto(saved.manifest.job());
  if (!spec.ok()) return With(spec.status(), absl::StrCat(" (in ", manifest, ")"));
  saved.spec = *std::move(spec);
  if (absl::Status s = CheckFields(manifest, saved.manifest, saved.spec); !s.ok()) return s;
  const auto there = [&](const v1::CheckpointManifest::File& file) {
    const std::string path = saved.PathOf(file);
    struct stat is;
    if (::stat(path.c_str(), &is) != 0) {
      if (errno == ENOENT) return absl::DataLossError(absl::StrCat(path, " is missing"));
      return formats::FileError(errno, "inspect", path);
    }
    if (is.st_size == file.bytes()) return absl::OkStatus();
    return Damaged(path, absl::StrCat("it has ", is.st_size, " bytes but ", file.bytes(), " were written"));
  };
  for (const v1::CheckpointManifest::File& file : saved.manifest.parts()) {
    if (absl::Status s = there(file); !s.ok()) return s;
  }
  if (absl::Status s = there(saved.manifest.state()); !s.ok()) return s;
  return saved;
}

}  // namespace

absl::StatusOr<std::string> EncodeManifest(const v1::CheckpointManifest& manifest) {
  google::protobuf::util::JsonPrintOptions how;
  how.add_whitespace = false;
  how.preserve_proto_field_names = true;
  std::string body;
  const auto printed = google::protobuf::util::MessageToJsonString(manifest, &body, how);
  if (!printed.ok()) return absl::InternalError(absl::StrCat("the manifest: ", printed.ToString()));
  body = absl::StrCat("\"manifest\":", body, "}\n");
  return absl::StrCat(absl::StrFormat(kHeadFormat, kManifestFormat, runtime::Crc32c(body)), body);
}

absl::StatusOr<v1::CheckpointManifest> DecodeManifest(const std::string& path, absl::string_view text) {
  const size_t line = text.find('\n');
  absl::string_view head = text.substr(0, line == text.npos ? text.size() : line);
  int format = 0;
  uint32_t crc = 0;
  const size_t comma = head.find(',');
  absl::string_view version = head.substr(0, comma), sum = comma == head.npos ? "" : head.substr(comma);
  if (!absl::ConsumePrefix(&version, "{\"sherd_checkpoint\":") || !absl::SimpleAtoi(version, &format)) {
    return Damaged(path, "it does not begin as a manifest does");
  }
  if (format > kManifestFormat) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " has format ", format, " but this program reads up to ", kManifestFormat,
                     ": restore with the version that saved it, or a later one"));
  }
  if (format < 1 || line == text.npos || !absl::ConsumePrefix(&sum, ",\"crc32c\":\"") ||
      !absl::ConsumeSuffix(&sum, "\",") || sum.size() != 8 || !absl::SimpleHexAtoi(sum, &crc)) {
    return Damaged(path, "its first line is cut or changed");
  }
  absl::string_view body = text.substr(line + 1);
  if (const uint32_t is = runtime::Crc32c(body); is != crc) {
    return Damaged(
        path, absl::StrFormat("its %d bytes have crc32c %08x but %08x was written", body.size(), is, crc));
  }
  v1::CheckpointManifest manifest;
  if (!absl::ConsumePrefix(&body, "\"manifest\":") || !absl::ConsumeSuffix(&body, "}\n"))
    return Damaged(path, "it holds no manifest");
  google::protobuf::util::JsonParseOptions how;
  how.ignore_unknown_fields = true;  // of a later version with the same format
  const auto parsed = google::protobuf::util::JsonStringToMessage(std::string(body), &manifest, how);
  if (!parsed.ok()) return Damaged(path, parsed.ToString());
  return manifest;
}

absl::StatusOr<formats::FileSum> SumOf(const v1::CheckpointManifest::File& file) {
  formats::FileSum sum;
  sum.bytes = file.bytes();
  sum.crc32c = file.crc32c();
  sum.chunk_bytes = file.chunk_bytes();
  sum.chunk_crc32c.assign(file.chunk_crc32c().begin(), file.chunk_crc32c().end());
  if (absl::Status s = formats::CheckFileSum(sum); !s.ok()) return Damaged(file.name(), s.message());
  return sum;
}

absl::Status CheckTag(absl::string_view tag) {
  if (IsValidName(tag) && tag != kLatestName) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tag \"", tag.substr(0, 80), "\" is not 1..64 characters of [A-Za-z0-9._-], not beginning ",
      "with a dot and not \"", kLatestName, "\""));
}

std::vector<FoundCheckpoint> FindCheckpoints(const std::string& directory) {
  std::vector<FoundCheckpoint> found;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(directory.c_str()), ::closedir);
  if (dir == nullptr) return found;
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string tag = entry->d_name;
    const std::string path = absl::StrCat(directory, "/", tag);
    struct stat info;
    if (!CheckTag(tag).ok() || ::lstat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) continue;
    const std::string manifest = absl::StrCat(path, "/", kManifestName);
    absl::StatusOr<std::string> text = formats::ReadWhole(manifest, kMostManifestBytes);
    if (!text.ok()) continue;
    absl::StatusOr<v1::CheckpointManifest> m = DecodeManifest(manifest, *text);
    if (!m.ok()) continue;
    FoundCheckpoint& c = found.emplace_back();
    c.tag = tag;
    c.step = m->step();
    c.saved_unix_nanos = m->saved_unix_nanos();
    for (const auto& file : m->parts()) c.files.push_back(file.name());
    c.files.push_back(m->state().name());
  }
  std::sort(found.begin(), found.end(), [](const FoundCheckpoint& a, const FoundCheckpoint& b) {
    return std::tie(a.saved_unix_nanos, a.step, a.tag) > std::tie(b.saved_unix_nanos, b.step, b.tag);
  });
  return found;
}

absl::StatusOr<SavedCheckpoint> OpenCheckpoint(const std::string& directory, const std::string& tag) {
  struct stat info;
  if (::stat(directory.c_str(), &info) != 0) return formats::FileError(errno, "restore from", directory);
  if (!S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("cannot restore from ", directory,
                                                   ": it is no directory and no file of weights; name the "
                                                   "directory given to save, or a .safetensors"));
  }
  std::string chosen = tag;
  if (chosen.empty()) {
    absl::StatusOr<std::string> latest = ReadLatest(directory);
    if (!latest.ok()) return latest.status();
    chosen = *latest;
  }
  if (absl::Status s = CheckTag(chosen); !s.ok()) return s;
  absl::StatusOr<SavedCheckpoint> saved = OpenTag(directory, chosen);
  if (!saved.ok()) return With(saved.status(), Others(directory, chosen));
  return saved;
}

}  // namespace sherd::server
