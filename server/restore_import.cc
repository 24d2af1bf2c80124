#include "server/restore_import.h"

#include <dirent.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "proto/status.h"
#include "runtime/clock.h"
#include "server/own_blocks.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;

constexpr absl::Duration kDropPatience = absl::Seconds(1);

void RemoveUnnamed(const runtime::JobDir& job) {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(job.path().c_str()), ::closedir);
  while (const dirent* entry = dir == nullptr ? nullptr : ::readdir(dir.get())) {
    absl::string_view name = entry->d_name;
    uint64_t id = 0;
    if (absl::ConsumePrefix(&name, "import.") && absl::SimpleAtoi(name, &id) && ImportSegment::IsUnnamed(id))
      ImportSegment::Remove(job, id).IgnoreError();
  }
}

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
  const auto into = [&](int plane, BlockRange blocks) { return import.Writable(plane, blocks.begin); };
  // Whoever stores it rounds.
  return ReadPart(
      plan, memory, share, [&](const TensorInfo& t, int) { return OwnBlocks(memory, t); }, into, nullptr,
      go_on);
}

absl::StatusOr<v1::ReadPartResponse> MakeHostImport(const RestorePlan& plan, const JobMemory& memory,
                                                    const std::function<bool()>& go_on) {
  // One restore runs at a time: what is there of others is given up.
  RemoveUnnamed(memory.dir());
  const uint64_t id = ImportSegment::UnnamedId();
  const absl::StatusOr<ImportSegment> import = CreateImport(plan, memory, id);
  if (!import.ok()) return import.status();
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

absl::Status NameImportHere(const JobMemory& memory, const v1::NameImportRequest& request) {
  const runtime::JobDir& dir = memory.dir();
  if (!ImportSegment::IsUnnamed(request.from()) || request.to() == 0 || request.to() >> 62 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("import ", request.from(), " cannot become import ", request.to()));
  }
  absl::Status named = ImportSegment::Rename(dir, request.from(), request.to());
  // Named before: by this call, or for a coordinator that has not proposed it.
  if (absl::IsNotFound(named) && ImportSegment::Open(memory, request.to()).ok()) return absl::OkStatus();
  if (!absl::IsAlreadyExists(named)) return named;
  if (memory.control().proposals.Read().import >= request.to()) {
    return absl::FailedPreconditionError(
        absl::StrCat("an import ", request.to(), " was proposed already: repeat the call"));
  }
  named = ImportSegment::Remove(dir, request.to());
  return named.ok() ? ImportSegment::Rename(dir, request.from(), request.to()) : named;
}

absl::Status DropImportHere(const JobMemory& memory, const v1::DropImportRequest& request) {
  if (!ImportSegment::IsUnnamed(request.import_id()))
    return absl::InvalidArgumentError(absl::StrCat("import ", request.import_id(), " is not one to drop"));
  return ImportSegment::Remove(memory.dir(), request.import_id());
}

absl::Status HostImports::Name(uint64_t to, absl::Time deadline) const {
  if (others_ == nullptr) return absl::OkStatus();
  return others_->ForEach(deadline, [&](int host, OtherHosts::Stub& stub, grpc::ClientContext* context) {
    v1::NameImportRequest request;
    request.set_job(others_->job());
    request.set_from(ids_.at(host));
    request.set_to(to);
    v1::NameImportResponse response;
    return FromGrpc(stub.NameImport(context, request, &response));
  });
}

HostImports::~HostImports() {
  if (others_ == nullptr || ids_.empty()) return;
  others_
      ->ForEach(runtime::SteadyNow() + kDropPatience,
                [&](int host, OtherHosts::Stub& stub, grpc::ClientContext* context) {
                  if (ids_.count(host) == 0) return absl::OkStatus();
                  v1::DropImportRequest request;
                  request.set_job(others_->job());
                  request.set_import_id(ids_.at(host));
                  v1::DropImportResponse response;
                  return FromGrpc(stub.DropImport(context, request, &response));
                })
      .IgnoreError();
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
