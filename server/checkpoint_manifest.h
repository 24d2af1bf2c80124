// The file that makes a directory a checkpoint: manifest.json.
//
//   absl::StatusOr<std::string> text = EncodeManifest(manifest);
//   absl::StatusOr<SavedCheckpoint> saved = OpenCheckpoint("/data/run1", "");      // the one `latest` names
//
// It is one JSON object. Its first line holds the format's version and the CRC-32C of all bytes behind that
// line; the rest is a sherd.v1.CheckpointManifest as JSON. Beside it stand the files it lists, with size and
// checksums.
//
// Pure but for OpenCheckpoint and FindCheckpoints, which block on the file system. Thread-safe.
#ifndef SHERD_SERVER_CHECKPOINT_MANIFEST_H_
#define SHERD_SERVER_CHECKPOINT_MANIFEST_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/job_spec.h"
#include "proto/sherd/v1/manifest.pb.h"
#include "runtime/formats/checkpoint.h"
#include "runtime/formats/summed_file.h"

namespace sherd::server {

inline constexpr char kManifestName[] = "manifest.json";
inline constexpr char kLatestName[] = "latest";
inline constexpr int kManifestFormat = 1;

absl::StatusOr<std::string> EncodeManifest(const v1::CheckpointManifest& manifest);
// `path` is for the message: DATA_LOSS for damaged or truncated text, FAILED_PRECONDITION for a newer format.
absl::StatusOr<v1::CheckpointManifest> DecodeManifest(const std::string& path, absl::string_view text);

// What a file of a manifest must be; DATA_LOSS if that makes no sense.
absl::StatusOr<formats::FileSum> SumOf(const v1::CheckpointManifest::File& file);
// `out`: one of these, or a v1::PartFile on its way to become one.
template <typename File>
void SetSum(const formats::FileSum& sum, File* out) {
  out->set_bytes(sum.bytes);
  out->set_crc32c(sum.crc32c);
  out->set_chunk_bytes(sum.chunk_bytes);
  out->mutable_chunk_crc32c()->Assign(sum.chunk_crc32c.begin(), sum.chunk_crc32c.end());
}

struct SavedCheckpoint {
  std::string path;  // of its directory
  std::string tag;
  v1::CheckpointManifest manifest;
  JobSpec spec;  // of the job that was saved
  // Of server/saved_weights.h: where the values are. Then there is no manifest, and `spec` has names and
  // shapes.
  std::shared_ptr<const formats::Checkpoint> weights;

  std::string PathOf(const v1::CheckpointManifest::File& file) const { return path + "/" + file.name(); }
};

// A checkpoint of `directory`, whole as far as that can be told without reading all of it: manifest, and
// every file there in its size. An empty tag is the one that `latest` names. Errors name the file and the
// tags that could be restored instead:
//   NOT_FOUND            no such directory or tag; no checkpoint was completed there
//   DATA_LOSS            damaged, truncated or missing files
//   FAILED_PRECONDITION  a newer format
//   INVALID_ARGUMENT     a directory that is none, a bad tag
absl::StatusOr<SavedCheckpoint> OpenCheckpoint(const std::string& directory, const std::string& tag);

// One that has a good manifest; its files were not looked at.
struct FoundCheckpoint {
  std::string tag;
  uint64_t step = 0;
  int64_t saved_unix_nanos = 0;
  std::vector<std::string> files;  // without directory, the manifest not among them
};
// Newest first. Directories that are symbolic links are left out.
std::vector<FoundCheckpoint> FindCheckpoints(const std::string& directory);

// OK for names that a checkpoint may have; else INVALID_ARGUMENT.
absl::Status CheckTag(absl::string_view tag);

}  // namespace sherd::server

#endif  // SHERD_SERVER_CHECKPOINT_MANIFEST_H_
