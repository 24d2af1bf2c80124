#include "server/restore_operation.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "proto/convert.h"
#include "proto/sherd/v1/checkpoint.grpc.pb.h"
#include "proto/status.h"
#include "runtime/clock.h"
#include "runtime/compute_parameters.h"
#include "runtime/mutex.h"
#include "server/checkpoint_manifest.h"
#include "server/checkpoint_part.h"
#include "server/host_imports.h"
#include "server/import_names.h"
#include "server/import_segment.h"
#include "server/own_blocks.h"
#include "server/restore_import.h"
#include "server/restore_plan.h"
#include "server/saved_weights.h"
#include "server/slot_crew.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;

v1::RestoreFrom FromRecord(const v1::RestoreRecord& record) {
  v1::RestoreFrom from;
  from.set_directory(record.directory());
  from.set_tag(record.tag());
  from.set_weights_only(record.weights_only());
  from.set_partial(record.partial());
  return from;
}

// Of a job that begins as `record` says.
absl::StatusOr<RestorePlan> InitialPlan(const JobMemory& memory, const v1::RestoreRecord& record) {
  absl::StatusOr<RestorePlan> plan = RestorePlan::Open(FromRecord(record), memory.spec());
  if (!plan.ok() || plan->weights_only() || plan->saved().manifest.step() == record.step()) return plan;
  return absl::FailedPreconditionError(
      absl::StrCat(plan->saved().path, " was replaced while the job began from it: it is of step ",
                   plan->saved().manifest.step(), ", the job begins with ", record.step()));
}

absl::StatusOr<CheckpointState> StateOf(const RestorePlan& plan) {
  const SavedCheckpoint& saved = plan.saved();
  if (saved.weights != nullptr) return ReadWeightState(saved);
  const absl::StatusOr<formats::FileSum> sum = SumOf(saved.manifest.state());
  if (!sum.ok()) return sum.status();
  return ReadState(saved.spec, saved.PathOf(saved.manifest.state()), *sum);
}

// A share of the files, into the planes of a job that has no values yet.
absl::StatusOr<int64_t> ReadIntoPlanes(const RestorePlan& plan, JobMemory& memory, RestoreShare share,
                                       RestoreTarget::Wanted wanted, const std::function<bool()>& go_on) {
  const auto has_values = [&] { return memory.control().initialized.load(std::memory_order_acquire) != 0; };
  if (has_values()) return absl::FailedPreconditionError("the job has values: nothing is read into it");
  RestoreTarget target;
  target.wanted = std::move(wanted);
  target.into = [&](int plane, BlockRange blocks) {
    return memory.plane(plane) + blocks.begin * kBlockElements;
  };
  // The parameters that trainers compute with, from the masters: the bits that were saved.
  if (memory.compute() != nullptr) {
    target.stored = [&](int tensor, int plane, BlockRange blocks) {
      if (plane != 0) return;
      runtime::RoundToCompute(memory.spec(), memory.plane(0), blocks, plan.UpdateCount(tensor),
                              memory.compute());
    };
  }
  return ReadPart(plan, memory, share, target, [&] { return go_on() && !has_values(); });
}

// What of a job of several hosts this one reads by itself: what it owns of the optimizer's planes. Parameters
// the first one reads and sends as it does rank 0's initial values, unless each host has those of its own.
absl::StatusOr<int64_t> ReadHost(const RestorePlan& plan, JobMemory& memory,
                                 const std::function<bool()>& go_on) {
  const bool first_host = memory.place().index == 0;
  const auto wanted = [&](const TensorInfo& tensor, int plane) {
    const bool shares = memory.IsGathered(tensor.unit) && memory.spec().gather.initial_shares;
    if (plane == 0 && !shares) return first_host ? tensor.blocks : BlockRange{};
    return OwnBlocks(memory, tensor);
  };
  return ReadIntoPlanes(plan, memory, {0, 1}, wanted, go_on);
}

void StoreCounts(const RestorePlan& plan, JobMemory& memory, Step step) {
  for (size_t t = 0; t < memory.layout().tensors().size(); ++t)
    memory.tensor_steps(step)[t].store(plan.UpdateCount(static_cast<int>(t)), std::memory_order_relaxed);
  memory.updates(step).store(plan.weights_only() ? 0 : plan.saved().manifest.updates(),
                             std::memory_order_relaxed);
}

// Lets every host read what it owns into an import of its own: `import` here. `from` has a tag.
absl::StatusOr<int64_t> ReadHosts(ServiceContext* context, Coordinator* coordinator, JobMemory& memory,
                                  const RestorePlan& plan, const v1::RestoreFrom& from,
                                  const ImportSegment& import, HostImports* elsewhere, absl::Time deadline) {
  std::atomic<int64_t> bytes{0};
  runtime::Mutex mu;  // of `elsewhere`
  SlotCrew crew(context, coordinator, memory.place().count);
  SlotWork work;
  work.remote = [&](Slot host, int, SlotWork::Stub& stub, grpc::ClientContext* client) {
    v1::ReadPartRequest request;
    request.set_job(context->job());
    *request.mutable_from() = from;
    request.set_slot(host.value());
    request.set_servers(memory.place().count);
    request.set_host_import(true);
    request.set_generation(memory.control().import_generation.load(std::memory_order_acquire));
    v1::ReadPartResponse response;
    const absl::Status s = FromGrpc(stub.ReadPart(client, request, &response));
    if (!s.ok()) return s;
    bytes += response.bytes();
    runtime::MutexLock lock(mu);
    elsewhere->Set(host.value(), response.import_id());
    return s;
  };
  work.local = [&](Slot, int) {
    const absl::StatusOr<int64_t> read =
        ReadIntoImport(plan, memory, {0, 1}, import, [&] { return !crew.stopping(); });
    if (read.ok()) bytes += *read;
    return read.status();
  };
  if (absl::Status s = crew.Run(work, deadline); !s.ok()) return s;
  return bytes.load();
}

// Lets every server read its part. `from` has a tag.
absl::StatusOr<int64_t> ReadParts(ServiceContext* context, Coordinator* coordinator, JobMemory& memory,
                                  const v1::RestoreFrom& from, uint64_t import_id, absl::Time deadline) {
  const std::optional<runtime::Assignment> owners = memory.control().Newest();
  if (!owners.has_value()) return absl::UnavailableError("the job has no owners yet: repeat the call");
  const int servers = owners->servers;
  std::atomic<int64_t> bytes{0};
  const auto request_for = [&](Slot slot) {
    v1::ReadPartRequest request;
    request.set_job(context->job());
    *request.mutable_from() = from;
    request.set_slot(slot.value());
    request.set_servers(servers);
    request.set_import_id(import_id);
    return request;
  };
  SlotCrew crew(context, coordinator, servers);
  SlotWork work;
  // A server that is only slow must not write into planes that are in use by then; into an import it may.
  work.stand_in = import_id != 0;
  work.remote = [&](Slot slot, int, SlotWork::Stub& stub, grpc::ClientContext* client) {
    v1::ReadPartResponse response;
    const absl::Status s = FromGrpc(stub.ReadPart(client, request_for(slot), &response));
    if (s.ok()) bytes += response.bytes();
    return s;
  };
  work.local = [&](Slot slot, int) {
    const absl::StatusOr<v1::ReadPartResponse> response =
        ReadPartHere(context, request_for(slot), [&] { return !crew.stopping(); });
    if (response.ok()) bytes += response->bytes();
    return response.status();
  };
  if (absl::Status s = crew.Run(work, deadline); !s.ok()) return s;
  return bytes.load();
}

// Buffers that both jobs have alike, into the area that `to` is.
void CopyBuffers(const JobSpec& saved, const CheckpointState& state, const JobSpec& job,
                 absl::Span<char> to) {
  for (size_t b = 0; b < job.buffers.size(); ++b) {
    const auto same = std::find(saved.buffers.begin(), saved.buffers.end(), job.buffers[b]);
    if (same == saved.buffers.end()) continue;
    const int from = static_cast<int>(same - saved.buffers.begin());
    std::memcpy(to.data() + runtime::BufferOffset(job, static_cast<int>(b)),
                state.buffers.data() + runtime::BufferOffset(saved, from), BufferBytes(*same));
  }
}

LossScale LossScaleOf(const v1::CheckpointManifest& manifest) {
  const v1::CheckpointManifest::LossScaleState& from = manifest.loss_scale();
  LossScale scale;
  scale.scale = from.scale();
  scale.last = from.last();
  scale.i = from.i();
  scale.skipped = from.skipped();
  scale.credit = from.credit();
  scale.floor = from.floor();
  return scale;
}

// What trainers committed with the checkpoint's step, as the records of that step in this job. On another
// host than the first only those of its own ranks: the others' come from there.
absl::Status PublishTrainers(const RestorePlan& plan, const CheckpointState& state, JobMemory& memory,
                             Step step) {
  const SavedCheckpoint& saved = plan.saved();
  const JobSpec& spec = memory.spec();
  const bool first_host = memory.place().index == 0;
  if (first_host) CopyBuffers(saved.spec, state, spec, memory.rank(Rank(0)).buffers(step));
  if (plan.weights_only()) return absl::OkStatus();
  TrainerStep record;
  record.id = StepId{step, 0};
  Verdict verdict;  // of that step, as far as anybody looks at it
  verdict.id = record.id;
  verdict.loss_scale = LossScaleOf(saved.manifest);
  if (saved.spec.loss_scale != spec.loss_scale) {
    // A job that scales its losses otherwise begins with its own scale; what was counted goes on.
    const LossScale before = verdict.loss_scale;
    verdict.loss_scale = FirstLossScale(spec.loss_scale);
    verdict.loss_scale.i = before.i;
    verdict.loss_scale.last = before.i - 1;
    verdict.loss_scale.skipped = before.skipped;
  }
  record.loss_scale = verdict.loss_scale;
  absl::StatusOr<runtime::OwnerRecords*> first = memory.owner(Slot(0));
  if (!first.ok()) return first.status();
  if (first_host) (*first)->WriteVerdict(verdict);
  for (const v1::CheckpointManifest::Group& g : saved.manifest.groups()) {
    if (static_cast<int>(record.groups.size()) == runtime::GroupCount(spec)) break;
    GroupScalars& scalars = record.groups.emplace_back(GroupScalars{});
    std::copy_n(g.scalars().begin(), std::min<size_t>(g.scalars_size(), scalars.size()), scalars.begin());
  }
  for (int r = 0; r < spec.world_size; ++r) {
    if (!first_host && !memory.IsHere(Rank(r))) continue;
    // Ranks that the saved job did not have go on with the states of those that it had, in turn.
    const std::string& blob = state.blobs[r % state.blobs.size()];
    if (absl::Status s = memory.rank(Rank(r)).PublishStep(record, blob); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::ReadPartResponse> ReadPartHere(ServiceContext* context, const v1::ReadPartRequest& request,
                                                  const std::function<bool()>& go_on) {
  const absl::StatusOr<JobMemory*> got = context->Memory();
  if (!got.ok()) return got.status();
  JobMemory& memory = **got;
  absl::Status s = CheckInRange("servers", request.servers(), 1, runtime::kMaxSlots);
  if (s.ok()) s = CheckInRange("slot", request.slot(), 0, request.servers() - 1);
  if (!s.ok()) return s;
  if (request.host_import() && request.slot() != memory.place().index) {
    return absl::InvalidArgumentError(
        absl::StrCat("slot=", request.slot(), " is not this host, ", memory.place().index));
  }
  const absl::StatusOr<RestorePlan> plan = RestorePlan::Open(request.from(), memory.spec());
  if (!plan.ok()) return OnHost(memory.place(), plan.status());
  if (request.host_import()) return MakeHostImport(*plan, memory, request.generation(), go_on);
  const RestoreShare share{request.slot(), request.servers()};
  absl::StatusOr<int64_t> bytes = int64_t{0};
  if (request.import_id() == 0) {
    bytes = ReadIntoPlanes(*plan, memory, share, nullptr, go_on);
  } else {
    const absl::StatusOr<ImportSegment> import =
        ImportSegment::Open(memory, request.import_id(), runtime::Segment::Access::kReadWrite);
    if (!import.ok()) return import.status();
    bytes = ReadIntoImport(*plan, memory, share, *import, go_on);
  }
  if (!bytes.ok()) return bytes.status();
  v1::ReadPartResponse response;
  response.set_bytes(*bytes);
  return response;
}

absl::StatusOr<v1::RestoreReport> RestoreInitial(ServiceContext* context, Coordinator* coordinator,
                                                 const v1::RestoreRecord& record, absl::Time deadline) {
  const absl::Time begun = runtime::SteadyNow();
  const absl::StatusOr<JobMemory*> got = context->Memory();
  if (!got.ok()) return got.status();
  JobMemory& memory = **got;
  const absl::StatusOr<RestorePlan> plan = InitialPlan(memory, record);
  if (!plan.ok()) return plan.status();
  const Step step(record.step());
  const absl::StatusOr<CheckpointState> state = StateOf(*plan);
  if (!state.ok()) return state.status();
  const absl::StatusOr<int64_t> bytes =
      memory.place().several()
          ? ReadHost(*plan, memory,
                     [&] { return !coordinator->stopped() && runtime::SteadyNow() < deadline; })
          : ReadParts(context, coordinator, memory, FromRecord(record), 0, deadline);
  if (!bytes.ok()) return bytes.status();
  StoreCounts(*plan, memory, step);
  if (absl::Status s = PublishTrainers(*plan, *state, memory, step); !s.ok()) return s;
  v1::RestoreReport report = plan->Report(memory.spec());
  report.set_bytes(*bytes);
  ToProto(runtime::SteadyNow() - begun, report.mutable_duration());
  return report;
}

absl::Status RestoreHost(JobMemory& memory, const v1::RestoreRecord& record, int servers,
                         const std::function<bool()>& go_on) {
  const absl::StatusOr<RestorePlan> plan = InitialPlan(memory, record);
  if (!plan.ok()) return plan.status();
  const absl::StatusOr<CheckpointState> state = StateOf(*plan);
  if (!state.ok()) return state.status();
  if (const absl::Status read = ReadHost(*plan, memory, go_on).status(); !read.ok()) return read;
  const Step step(record.step());
  StoreCounts(*plan, memory, step);
  if (absl::Status s = PublishTrainers(*plan, *state, memory, step); !s.ok()) return s;
  for (int m = 0; m < servers && step.value() > 0; ++m) {
    const absl::StatusOr<runtime::OwnerRecords*> page = memory.owner(Slot(m));
    if (!page.ok()) return page.status();
    (*page)->Begin({step, 0}, {});
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::RestoreResponse> RestoreIntoJob(ServiceContext* context, Coordinator* coordinator,
                                                   const v1::RestoreRequest& request, absl::Time deadline) {
  const absl::Time begun = runtime::SteadyNow();
  const absl::StatusOr<JobMemory*> got = context->Memory();
  if (!got.ok()) return got.status();
  JobMemory& memory = **got;
  const absl::StatusOr<RestorePlan> plan = RestorePlan::Open(request.from(), memory.spec());
  if (!plan.ok()) return plan.status();
  const absl::StatusOr<Node*> node = context->node();
  if (!node.ok()) return node.status();
  const OtherHosts* const others = (*node)->others();
  const uint64_t id = ImportSegment::UnnamedId();
  const absl::StatusOr<ImportSegment> import = CreateImport(*plan, memory, id);
  if (!import.ok()) return import.status();
  const auto remove = absl::MakeCleanup([&] { ImportSegment::Remove(memory.dir(), id).IgnoreError(); });
  HostImports elsewhere(others);
  v1::RestoreFrom from = request.from();
  from.set_tag(plan->saved().tag);
  const absl::StatusOr<int64_t> bytes =
      others == nullptr ? ReadParts(context, coordinator, memory, from, id, deadline)
                        : ReadHosts(context, coordinator, memory, *plan, from, *import, &elsewhere, deadline);
  if (!bytes.ok()) return bytes.status();
  const auto name_it = [&](uint64_t to, uint64_t generation) {
    const absl::Status named = elsewhere.Name(to, generation, deadline);
    return named.ok() ? NameImportHere(memory, id, to, generation) : named;
  };
  const absl::StatusOr<Step> step = coordinator->StoreImport(request.token(), name_it, deadline);
  if (!step.ok()) return step.status();
  v1::RestoreResponse response;
  *response.mutable_restored() = plan->Report(memory.spec());
  response.mutable_restored()->set_bytes(*bytes);
  ToProto(runtime::SteadyNow() - begun, response.mutable_restored()->mutable_duration());
  response.set_step(step->value());
  return response;
}

}  // namespace sherd::server
