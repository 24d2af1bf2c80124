#include "server/restore_import.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/import_names.h"
#include "server/own_blocks.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;

}  // namespace

absl::StatusOr<ImportSegment> CreateImport(const RestorePlan& plan, const JobMemory& memory, uint64_t id) {
  std::vector<ImportSegment::Item> items;
  std::vector<int> counted;
  for (const TensorInfo& t : memory.layout().tensors()) {
    for (int p = 0; p < plan.PlanesFor(t); ++p) items.push_back({t.index, p});
    if (plan.PlanesFor(t) > 1) counted.push_back(t.index);
  }
  const int values = static_cast<int>(items.size());
  for (const int t : counted) items.push_back({t, ImportSegment::kUpdateCount});
  if (items.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(plan.saved().path, " has no tensor of this job: nothing to restore"));
  }
  absl::StatusOr<ImportSegment> import = ImportSegment::Create(memory, id, std::move(items));
  if (!import.ok()) return import.status();
  for (size_t i = 0; i < counted.size(); ++i)
    import->Values(values + static_cast<int>(i))[0] = static_cast<float>(plan.UpdateCount(counted[i]));
  return import;
}

absl::StatusOr<int64_t> ReadIntoImport(const RestorePlan& plan, const JobMemory& memory, RestoreShare share,
                                       const ImportSegment& import, const std::function<bool()>& go_on) {
  RestoreTarget target;  // whoever stores it rounds
  target.wanted = [&](const TensorInfo& t, int) { return OwnBlocks(memory, t); };
  target.into = [&](int plane, BlockRange blocks) { return import.Writable(plane, blocks.begin); };
  return ReadPart(plan, memory, share, target, go_on);
}

absl::StatusOr<v1::ReadPartResponse> MakeHostImport(const RestorePlan& plan, const JobMemory& memory,
                                                    uint64_t generation, const std::function<bool()>& go_on) {
  RemoveUnnamedRestores(memory);
  const uint64_t id = ImportSegment::UnnamedId();
  const absl::StatusOr<ImportSegment> import = CreateImport(plan, memory, id);
  if (!import.ok()) return import.status();
  import->SetGeneration(generation);
  const absl::StatusOr<int64_t> bytes = ReadIntoImport(plan, memory, {0, 1}, *import, go_on);
  if (!bytes.ok()) {
    ImportSegment::Remove(memory.dir(), id).IgnoreError();
    return bytes.status();
  }
  v1::ReadPartResponse response;
  response.set_bytes(*bytes);
  response.set_import_id(id);
  return response;
}

absl::Status OnHost(const runtime::HostPlace& place, const absl::Status& status) {
  if (status.ok() || !place.several()) return status;
  if (!absl::IsNotFound(status))
    return absl::Status(status.code(), absl::StrCat("host ", place.index, ": ", status.message()));
  return absl::FailedPreconditionError(
      absl::StrCat("host ", place.index, " does not see the checkpoint: ", status.message(),
                   "; it must be in a file system that all hosts share, with one path on all"));
}

}  // namespace sherd::server
