#include "proto/epoch_record.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/sherd/v1/epoch.pb.h"

namespace sherd {

ProcessIdentity FromProto(const v1::Process& process) { return {process.pid(), process.start_ticks()}; }

void ToProto(const ProcessIdentity& process, v1::Process* out) {
  out->set_pid(static_cast<int32_t>(process.pid));
  out->set_start_ticks(process.start);
}

std::string EpochKey(Epoch epoch) { return absl::StrFormat("epoch/%020d", epoch.value()); }

std::string EncodeEpochDoc(const EpochDoc& doc) {
  v1::EpochRecord r;
  r.set_format(1);
  r.set_job(doc.job);
  r.set_epoch(doc.epoch.value());
  r.set_reason(doc.reason);
  r.set_world_size(doc.world_size);
  for (const TrainerMember& t : doc.trainers) {
    v1::EpochRecord::Trainer* out = r.add_trainers();
    out->set_incarnation(t.incarnation.value());
    ToProto(t.process, out->mutable_process());
    out->set_host(t.host);
    out->set_ready(t.ready);
  }
  r.set_layout_hash(doc.layout_hash);
  r.set_trainers_epoch(doc.trainers_epoch.value());
  for (const ServerMember& s : doc.servers) {
    v1::EpochRecord::Server* out = r.add_servers();
    out->set_id(s.id);
    out->set_address(s.address);
    out->set_host(s.host);
    ToProto(s.process, out->mutable_process());
    out->set_incarnation(s.incarnation.value());
  }
  for (const HostMember& h : doc.hosts) {
    v1::EpochRecord::Host* out = r.add_hosts();
    out->set_name(h.name);
    out->set_address(h.address);
    out->set_ranks(h.ranks);
    out->set_servers(h.servers);
  }
  r.set_owning_servers(doc.owning_servers);
  r.set_ranges_epoch(doc.ranges_epoch.value());
  r.set_desired_servers(doc.desired_servers);
  r.set_desired_trainers(doc.desired_trainers);
  r.set_give_up_step(doc.give_up_step);
  r.set_desired_from_step(doc.desired_from_step.value());
  r.set_trainers_resized(doc.trainers_resized);
  r.set_draining(doc.draining);
  r.set_operation_request(doc.operation_request);
  r.set_proposed_epoch(doc.proposed_epoch.value());
  return r.SerializeAsString();
}

absl::StatusOr<EpochDoc> DecodeEpochDoc(absl::string_view bytes) {
  v1::EpochRecord r;
  if (!r.ParseFromString(std::string(bytes))) {
    return absl::DataLossError(absl::StrCat("epoch record of ", bytes.size(), " bytes is damaged"));
  }
  if (r.format() != 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("epoch record has format ", r.format(),
                     " but this program reads 1: use the version that made the job"));
  }
  EpochDoc doc;
  doc.job = r.job();
  doc.epoch = Epoch(r.epoch());
  doc.reason = r.reason();
  doc.world_size = r.world_size();
  for (const v1::EpochRecord::Trainer& t : r.trainers()) {
    doc.trainers.push_back({Incarnation(t.incarnation()), FromProto(t.process()), t.host(), t.ready()});
  }
  doc.layout_hash = r.layout_hash();
  doc.trainers_epoch = Epoch(r.trainers_epoch());
  for (const v1::EpochRecord::Server& s : r.servers()) {
    doc.servers.push_back(
        {s.id(), s.address(), s.host(), FromProto(s.process()), Incarnation(s.incarnation())});
  }
  for (const v1::EpochRecord::Host& h : r.hosts()) {
    doc.hosts.push_back({h.name(), h.address(), h.ranks(), h.servers()});
  }
  doc.owning_servers = r.owning_servers();
  doc.ranges_epoch = Epoch(r.ranges_epoch());
  doc.desired_servers = r.desired_servers();
  doc.desired_trainers = r.desired_trainers();
  doc.give_up_step = r.give_up_step();
  doc.desired_from_step = Step(r.desired_from_step());
  doc.trainers_resized = r.trainers_resized();
  doc.draining = r.draining();
  doc.operation_request = r.operation_request();
  doc.proposed_epoch = Epoch(r.proposed_epoch());
  if (absl::Status s = CheckEpochDoc(doc); !s.ok()) return s;
  return doc;
}

}  // namespace sherd
