#include "client/cli/pull_target.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/dir_tree.h"
#include "runtime/formats/atomic_file.h"

namespace sherd::cli {
namespace {

// Makes the folders in front of a file's name.
absl::Status MakeFolders(const std::string& root, const std::string& name) {
  for (size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
    const std::string folder = JoinPath(root, name.substr(0, slash));
    if (::mkdir(folder.c_str(), 0777) != 0 && errno != EEXIST) {
      return formats::FileError(errno, "create the folder", folder);
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string JoinPath(const std::string& folder, const std::string& name) {
  if (folder == ".") return name;
  return absl::EndsWith(folder, "/") ? absl::StrCat(folder, name) : absl::StrCat(folder, "/", name);
}

absl::StatusOr<std::unique_ptr<PullTarget>> PullTarget::Create(const std::string& parent, PullPlan plan) {
  std::unique_ptr<PullTarget> target(new PullTarget(parent, std::move(plan)));
  target->writers_.resize(target->plan_.files.size());
  absl::Status status = target->staged() ? target->MakeStaging() : absl::OkStatus();
  for (size_t i = 0; status.ok() && !target->staged() && i < target->plan_.files.size(); ++i) {
    status = target->Open(i);
  }
  if (status.ok()) status = target->Advance();
  if (!status.ok()) return status;
  return target;
}

PullTarget::~PullTarget() {
  // Their partial files first.
  writers_.clear();
  if (staging_.empty()) return;
  runtime::RemoveContents(staging_fd_.get(), staging_).IgnoreError();
  ::rmdir(staging_.c_str());
}

absl::Status PullTarget::MakeStaging() {
  const std::string folder = JoinPath(parent_, plan_.folder);
  struct stat info;
  if (::lstat(folder.c_str(), &info) == 0) {
    return absl::AlreadyExistsError(absl::StrCat(folder, " exists: remove it, or pull into another folder"));
  }
  const std::string staging = JoinPath(parent_, absl::StrCat(".", plan_.folder, ".partial"));
  if (::mkdir(staging.c_str(), 0777) != 0 && errno != EEXIST) {
    return formats::FileError(errno, "create the folder", staging);
  }
  runtime::UniqueFd fd(::open(staging.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.ok()) return formats::FileError(errno, "open the folder", staging);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    return absl::FailedPreconditionError(absl::StrCat(staging, " is being written by another pull"));
  }
  staging_ = staging;
  staging_fd_ = std::move(fd);
  return runtime::RemoveContents(staging_fd_.get(), staging_);
}

absl::Status PullTarget::Open(size_t file) {
  const std::string& name = plan_.files[file].name;
  if (staged()) {
    if (absl::Status s = MakeFolders(staging_, name); !s.ok()) return s;
  }
  absl::StatusOr<std::unique_ptr<formats::TensorWriter>> writer =
      plan_.files[file].create(JoinPath(staged() ? staging_ : parent_, name));
  if (!writer.ok()) return writer.status();
  writers_[file] = *std::move(writer);
  return absl::OkStatus();
}

absl::Status PullTarget::Advance() {
  while (file_ < plan_.files.size()) {
    if (writers_[file_] == nullptr) {
      if (absl::Status s = Open(file_); !s.ok()) return s;
    }
    if (in_file_ < plan_.files[file_].data_bytes) return absl::OkStatus();
    if (staged()) {
      if (absl::Status s = writers_[file_]->Commit(); !s.ok()) return s;
      writers_[file_].reset();
    }
    ++file_;
    in_file_ = 0;
  }
  return absl::OkStatus();
}

absl::Status PullTarget::Write(absl::string_view bytes) {
  while (!bytes.empty()) {
    if (file_ == plan_.files.size()) return absl::OutOfRangeError("bytes past the end of the pull");
    const uint64_t room = plan_.files[file_].data_bytes - in_file_;
    const absl::string_view part = bytes.substr(0, std::min<uint64_t>(bytes.size(), room));
    if (absl::Status s = writers_[file_]->WriteData(in_file_, part); !s.ok()) return s;
    in_file_ += part.size();
    bytes.remove_prefix(part.size());
    if (absl::Status s = Advance(); !s.ok()) return s;
  }
  return absl::OkStatus();
}

// The folder's own entries, then its name: after a power cut it is whole or absent.
absl::Status PullTarget::ShowFolder() {
  const std::string folder = JoinPath(parent_, plan_.folder);
  if (::fsync(staging_fd_.get()) != 0) return formats::FileError(errno, "sync", staging_);
  if (::rename(staging_.c_str(), folder.c_str()) != 0) return formats::FileError(errno, "rename to", folder);
  staging_.clear();
  const runtime::UniqueFd parent(::open(parent_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!parent.ok() || ::fsync(parent.get()) != 0) return formats::FileError(errno, "sync", parent_);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> PullTarget::Commit() {
  if (file_ < plan_.files.size()) {
    return absl::FailedPreconditionError(absl::StrCat(plan_.files[file_].name, " is not whole"));
  }
  std::vector<std::string> paths;
  if (staged()) {
    if (absl::Status s = ShowFolder(); !s.ok()) return s;
    paths.push_back(JoinPath(parent_, plan_.folder));
  }
  for (size_t i = 0; !staged() && i < writers_.size(); ++i) {
    if (absl::Status s = writers_[i]->Commit(); !s.ok()) return s;
    paths.push_back(JoinPath(parent_, plan_.files[i].name));
  }
  if (plan_.last_name.empty()) return paths;
  paths.push_back(JoinPath(parent_, plan_.last_name));
  if (absl::Status s = formats::WriteWhole(paths.back(), plan_.last_bytes); !s.ok()) return s;
  return paths;
}

}  // namespace sherd::cli
