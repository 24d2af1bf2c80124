#include "server/import_names.h"

#include <fcntl.h>

#include <cerrno>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "runtime/flock.h"
#include "runtime/unique_fd.h"
#include "server/import_segment.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;
using runtime::Segment;

// Where a generation counts coordinators; below that, what they gave up.
constexpr int kCoordinatorAt = 32;

// Whoever holds it may look at a name and change it. It goes with its process. `operation`: as flock's.
absl::StatusOr<runtime::UniqueFd> Lock(const runtime::JobDir& dir, int operation) {
  const std::string path = absl::StrCat(dir.path(), "/naming");
  runtime::UniqueFd lock(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  if (!lock.ok() || runtime::Flock(lock.get(), operation) != 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot lock ", path));
  return lock;
}

// REQUIRES: named under an id that a coordinator proposes, or unnamed.
bool GivenUp(const JobMemory& memory, uint64_t id) {
  // In this order: the page of another host shows it after what was proposed.
  const uint64_t generation = memory.control().import_generation.load(std::memory_order_acquire);
  const bool unnamed = ImportSegment::IsUnnamed(id);
  if (!unnamed && id <= memory.control().proposals.Read().import) return false;
  const absl::StatusOr<ImportSegment> import = ImportSegment::Open(memory, id);
  if (!import.ok() || import->generation() == 0) return false;
  return unnamed ? import->generation() >> kCoordinatorAt < generation >> kCoordinatorAt
                 : import->generation() < generation;
}

}  // namespace

absl::Status NameImportHere(const JobMemory& memory, uint64_t from, uint64_t to, uint64_t generation) {
  const bool by_step = (to & ImportSegment::kNamedByStep) != 0;
  if (!ImportSegment::IsUnnamed(from) || to == 0 || ImportSegment::IsUnnamed(to) ||
      (generation == 0 && !by_step)) {
    return absl::InvalidArgumentError(absl::StrCat("import ", from, " cannot become import ", to));
  }
  const runtime::JobDir& dir = memory.dir();
  const absl::StatusOr<runtime::UniqueFd> lock = Lock(dir, LOCK_EX);
  if (!lock.ok()) return lock.status();
  const absl::StatusOr<ImportSegment> import = ImportSegment::Open(memory, from, Segment::Access::kReadWrite);
  const absl::StatusOr<ImportSegment> before = ImportSegment::Open(memory, to);
  if (absl::IsNotFound(import.status()) && before.ok() && (by_step || before->generation() == generation))
    return absl::OkStatus();  // by this call, made before
  if (!import.ok()) return import.status();
  if (by_step) return ImportSegment::Rename(dir, from, to);
  if (generation < memory.control().import_generation.load(std::memory_order_acquire) ||
      (before.ok() && before->generation() > generation)) {
    return absl::AbortedError(absl::StrCat("import ", to, " is another coordinator's by now"));
  }
  if (memory.control().proposals.Read().import >= to) {
    return absl::FailedPreconditionError(
        absl::StrCat("an import ", to, " was proposed already: repeat the call"));
  }
  // One that was never proposed.
  if (absl::Status s = ImportSegment::Remove(dir, to); !s.ok()) return s;
  import->SetGeneration(generation);
  return ImportSegment::Rename(dir, from, to);
}

void BeginGeneration(runtime::ControlPage& control) {
  const uint64_t before = control.import_generation.load(std::memory_order_acquire);
  control.import_generation.store(((before >> kCoordinatorAt) + 1) << kCoordinatorAt,
                                  std::memory_order_release);
}

void RemoveUnnamedRestores(const JobMemory& memory) {
  const absl::StatusOr<runtime::UniqueFd> lock = Lock(memory.dir(), LOCK_EX);
  if (!lock.ok()) return;
  for (const uint64_t id : ImportSegment::List(memory.dir())) {
    if (!ImportSegment::IsUnnamed(id)) continue;
    const absl::StatusOr<ImportSegment> import = ImportSegment::Open(memory, id);
    if (import.ok() && import->generation() != 0) ImportSegment::Remove(memory.dir(), id).IgnoreError();
  }
}

void RemoveIfGivenUp(const JobMemory& memory, uint64_t id) {
  if ((id & ImportSegment::kNamedByStep) != 0 || !GivenUp(memory, id)) return;
  // Another time, if somebody is at it.
  const absl::StatusOr<runtime::UniqueFd> lock = Lock(memory.dir(), LOCK_EX | LOCK_NB);
  // The name may have become another's meanwhile.
  if (lock.ok() && GivenUp(memory, id)) ImportSegment::Remove(memory.dir(), id).IgnoreError();
}

}  // namespace sherd::server
