#include "server/host_imports.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status.h"
#include "runtime/clock.h"
#include "server/import_names.h"
#include "server/import_segment.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;

constexpr absl::Duration kDropPatience = absl::Seconds(1);

absl::Status CheckParts(const v1::ProposeImportRequest& request, int hosts) {
  std::map<int, uint64_t> seen;
  for (const v1::ProposeImportRequest::Part& part : request.parts()) {
    if (part.host() < 0 || part.host() >= hosts || !seen.emplace(part.host(), part.import_id()).second)
      return absl::InvalidArgumentError(
          absl::StrCat("parts: host ", part.host(), " is none, or comes twice"));
  }
  if (static_cast<int>(seen.size()) == hosts) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("parts of ", seen.size(), " hosts; the job has ", hosts));
}

// Of naming: whoever made the import has died, or the coordinator has been followed by another.
absl::Status Again(const absl::Status& named) {
  if (!absl::IsNotFound(named) && !absl::IsAborted(named)) return named;
  return absl::UnavailableError(absl::StrCat(named.message(), ": repeat the call"));
}

}  // namespace

absl::Status HostImports::Name(uint64_t to, uint64_t generation, absl::Time deadline) {
  if (others_ == nullptr) return absl::OkStatus();
  const auto name = [&](int host, OtherHosts::Stub& stub, grpc::ClientContext* context) {
    v1::NameImportRequest request;
    request.set_job(others_->job());
    request.set_from(ids_.at(host));
    request.set_to(to);
    request.set_generation(generation);
    v1::NameImportResponse response;
    return Again(FromGrpc(stub.NameImport(context, request, &response)));
  };
  absl::Status named = others_->ForEach(deadline, name);
  named_ = named.ok();
  return named;
}

HostImports::~HostImports() {
  if (others_ == nullptr || ids_.empty() || named_) return;
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

absl::Status DropImportHere(const JobMemory& memory, const v1::DropImportRequest& request) {
  if (!ImportSegment::IsUnnamed(request.import_id()))
    return absl::InvalidArgumentError(absl::StrCat("import ", request.import_id(), " is not one to drop"));
  return ImportSegment::Remove(memory.dir(), request.import_id());
}

absl::StatusOr<v1::ProposeImportResponse> ProposeImportHere(const OtherHosts* others, const JobMemory& memory,
                                                            Coordinator& coordinator,
                                                            const v1::ProposeImportRequest& request,
                                                            absl::Time deadline) {
  if (absl::Status s = CheckParts(request, memory.place().count); !s.ok()) return s;
  v1::ProposeImportResponse response;
  const auto name_it = [&](uint64_t to, uint64_t generation) {
    HostImports elsewhere(others);
    uint64_t here = 0;
    for (const v1::ProposeImportRequest::Part& part : request.parts()) {
      if (part.host() == memory.place().index) {
        here = part.import_id();
      } else {
        elsewhere.Set(part.host(), part.import_id());
      }
    }
    response.set_import_id(to);
    if (absl::Status s = elsewhere.Name(to, generation, deadline); !s.ok()) return s;
    const absl::Status named = Again(NameImportHere(memory, here, to, generation));
    return memory.place().several() ? OtherHosts::Named(memory.place().index, named) : named;
  };
  const absl::StatusOr<Step> step = coordinator.StoreImport(request.token(), name_it, deadline);
  if (!step.ok()) return step.status();
  response.set_step(step->value());
  return response;
}

}  // namespace sherd::server
