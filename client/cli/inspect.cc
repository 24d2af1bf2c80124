#include "client/cli/inspect.h"

#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/json_text.h"
#include "client/cli/tensor_list.h"
#include "client/cli/text.h"
#include "kernels/optimizer_kinds.h"
#include "nlohmann/json.hpp"

namespace sherd::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string StateText(v1::Member::State state) {
  switch (state) {
    case v1::Member::STATE_WAITING:
      return "waiting";
    case v1::Member::STATE_ACTIVE:
      return "active";
    case v1::Member::STATE_STALLED:
      return "stalled";
    case v1::Member::STATE_LEAVING:
      return "leaving";
    case v1::Member::STATE_LOST:
      return "lost";
    case v1::Member::STATE_JOINING:
      return "joining";
    case v1::Member::STATE_FINISHED:
      return "finished";
    default:
      return "unknown";
  }
}

std::string OptimizerText(v1::Optimizer::Kind kind) {
  const kernels::OptimizerInfo* info = kernels::FindOptimizer(static_cast<kernels::OptimizerKind>(kind));
  return info == nullptr ? "" : info->name;
}

double SecondsOf(const google::protobuf::Duration& d) { return d.seconds() + d.nanos() * 1e-9; }

std::string PidText(bool there, const v1::Process& process) {
  return there ? absl::StrCat(process.pid()) : "-";
}

std::string Dash(std::string text) { return text.empty() ? "-" : text; }

// A number that JSON cannot hold becomes null.
Json Number(double value) { return std::isfinite(value) ? Json(value) : Json(); }

// Unset is fp32.
std::string PrecisionName(v1::DType dtype) {
  return DTypeText(dtype == v1::DTYPE_UNSPECIFIED ? v1::DTYPE_FLOAT32 : dtype);
}

// "fp32", or "bf16, gradients fp32, loss scale 1024 (dynamic)".
std::string PrecisionText(const v1::Cluster& c) {
  const v1::Precision& p = c.precision();
  std::string text = PrecisionName(p.compute());
  if (p.stochastic_rounding()) absl::StrAppend(&text, " rounded stochastically");
  if (PrecisionName(p.staging()) != PrecisionName(p.compute())) {
    absl::StrAppend(&text, ", gradients ", PrecisionName(p.staging()));
  }
  if (p.loss_scale().dynamic() || (c.loss_scale() > 0 && c.loss_scale() != 1)) {
    absl::StrAppend(&text, ", loss scale ", c.loss_scale(), p.loss_scale().dynamic() ? " (dynamic)" : "");
  }
  return text;
}

Json MemberJson(const v1::Member& m) {
  const bool server = m.kind() == v1::Member::KIND_SERVER;
  Json out = {{"kind", server ? "server" : "trainer"}, {"id", m.id()}};
  if (server) out["slots"] = std::vector<int>(m.slots().begin(), m.slots().end());
  if (!server) out["rank"] = m.rank();
  if (server) out["address"] = m.address();
  out["pid"] = m.has_process() ? Json(m.process().pid()) : Json();
  if (server) out["trainer_pid"] = m.has_trainer() ? Json(m.trainer().pid()) : Json();
  out["state"] = StateText(m.state());
  if (server) out["owned_elements"] = m.owned_elements();
  out["owned_bytes"] = m.owned_bytes();
  if (!server) out["incarnation"] = m.incarnation();
  if (m.has_stalled_for()) out["stalled_seconds"] = SecondsOf(m.stalled_for());
  return out;
}

// A line for each host of several, with what it has sent to each other one.
std::string HostsText(const v1::Cluster& c) {
  std::string text;
  for (const v1::Host& host : c.hosts()) {
    absl::StrAppend(&text, "host ", host.index(), host.name().empty() ? "      has not come\n" : "      ");
    if (host.name().empty()) continue;
    absl::StrAppend(&text, host.ranks(), " trainers, ", host.servers(), " servers");
    for (const v1::HostLink& link : host.links()) {
      absl::StrAppend(&text, "; to host ", link.peer(), ": ", HumanBytes(link.gradient_bytes()),
                      " of gradients, ", HumanBytes(link.parameter_bytes()), " of parameters");
      if (link.gathered_bytes() > 0)
        absl::StrAppend(&text, ", ", HumanBytes(link.gathered_bytes()), " of parameters gathered there");
      if (!link.up()) absl::StrAppend(&text, " (", link.problem(), ")");
    }
    absl::StrAppend(&text, "\n");
  }
  return text;
}

Json HostJson(const v1::Host& host) {
  Json out = {{"index", host.index()},
              {"come", !host.name().empty()},
              {"trainers", host.ranks()},
              {"servers", host.servers()},
              {"data_address", host.data_address()},
              {"step", host.step()},
              {"gathered_peak_bytes", host.gathered_peak_bytes()},
              {"links", Json::array()}};
  for (const v1::HostLink& link : host.links()) {
    out["links"].push_back({{"peer", link.peer()},
                            {"up", link.up()},
                            {"problem", link.problem()},
                            {"gradient_bytes", link.gradient_bytes()},
                            {"parameter_bytes", link.parameter_bytes()},
                            {"gathered_bytes", link.gathered_bytes()},
                            {"record_bytes", link.record_bytes()}});
  }
  return out;
}

}  // namespace

std::string StatusText(const v1::Cluster& c) {
  std::string text = absl::StrCat("job         ", c.job(), "\n", "directory   ", c.job_dir(), "\n",
                                  "epoch       ", c.epoch(), "\n", "step        ", c.step(), "\n");
  if (c.world_size() > 0) {
    const bool resizing = c.desired_trainers() != 0 && c.desired_trainers() != c.world_size();
    absl::StrAppend(&text, "world size  ", c.world_size(),
                    resizing ? absl::StrCat(" (", c.desired_trainers(), " asked for)") : "", "\n",
                    "stage       ", c.stage(), "\n", "optimizer   ", OptimizerText(c.optimizer().kind()),
                    "\n", "model       ", c.total_elements(), " elements in ", c.tensors(), " tensors\n",
                    "precision   ", PrecisionText(c), "\n");
    if (c.skipped_steps() > 0) {
      absl::StrAppend(&text, "skipped     ", c.skipped_steps(), " steps whose gradients were not finite\n");
    }
  } else {
    absl::StrAppend(&text, "world size  no trainer yet\n");
  }
  absl::StrAppend(&text, "servers     ", c.servers());
  if (c.desired_servers() != c.servers()) absl::StrAppend(&text, " (", c.desired_servers(), " asked for)");
  absl::StrAppend(&text, "\nmemory      ", HumanBytes(c.shared_memory_bytes()), " shared\n");
  absl::StrAppend(&text, HostsText(c));
  if (!c.training_error().empty()) absl::StrAppend(&text, "error       ", c.training_error(), "\n");
  if (!c.waiting_for().empty()) absl::StrAppend(&text, "waits for   ", c.waiting_for(), "\n");
  Table table({"KIND", "RANK", "ID", "ADDRESS", "PID", "TRAINER", "STATE", "ELEMENTS", "BYTES"});
  for (const v1::Member& m : c.members()) {
    const bool server = m.kind() == v1::Member::KIND_SERVER;
    std::string state = StateText(m.state());
    if (m.has_stalled_for()) absl::StrAppendFormat(&state, " %.0fs", SecondsOf(m.stalled_for()));
    table.Add({server ? "server" : "trainer",
               server ? Dash(absl::StrJoin(m.slots(), ",")) : absl::StrCat(m.rank()),
               m.id() == c.coordinator_id() && server ? absl::StrCat(m.id(), "*") : m.id(), Dash(m.address()),
               PidText(m.has_process(), m.process()), PidText(m.has_trainer(), m.trainer()), state,
               server ? absl::StrCat(m.owned_elements()) : "-", HumanBytes(m.owned_bytes())});
  }
  return absl::StrCat(text, "\n", table.ToString());
}

std::string StatusJson(const v1::Cluster& c) {
  Json out = {{"job", c.job()},
              {"job_dir", c.job_dir()},
              {"epoch", c.epoch()},
              {"step", c.step()},
              {"world_size", c.world_size()},
              {"desired_trainers", c.desired_trainers()},
              {"stage", c.world_size() > 0 ? Json(c.stage()) : Json()},
              {"servers", c.servers()},
              {"desired_servers", c.desired_servers()},
              {"optimizer", OptimizerText(c.optimizer().kind())},
              {"compute_dtype", c.world_size() > 0 ? Json(PrecisionName(c.precision().compute())) : Json()},
              {"staging_dtype", c.world_size() > 0 ? Json(PrecisionName(c.precision().staging())) : Json()},
              {"loss_scale", Number(c.loss_scale())},
              {"skipped_steps", c.skipped_steps()},
              {"training_error", c.training_error()},
              {"initialized", c.initialized()},
              {"waiting_for", c.waiting_for()},
              {"coordinator", {{"id", c.coordinator_id()}, {"address", c.coordinator_address()}}},
              {"layout_hash", absl::StrFormat("%016x", c.layout_hash())},
              {"total_elements", c.total_elements()},
              {"tensors", c.tensors()},
              {"planes", std::vector<std::string>(c.planes().begin(), c.planes().end())},
              {"shared_memory_bytes", c.shared_memory_bytes()},
              {"members", Json::array()}};
  for (const v1::Member& m : c.members()) out["members"].push_back(MemberJson(m));
  for (const v1::Host& host : c.hosts()) out["hosts"].push_back(HostJson(host));
  return Dump(out);
}

absl::Status ShowStatus(Context& context) {
  absl::StatusOr<v1::Cluster> cluster = context.client.GetCluster({}, context.deadline);
  if (!cluster.ok()) return cluster.status();
  context.out << (context.json ? StatusJson(*cluster) : StatusText(*cluster));
  return absl::OkStatus();
}

absl::Status ShowTensors(Context& context, const std::string& glob) {
  absl::StatusOr<TensorList> list = ListAll(context.client, glob, context.deadline);
  if (!list.ok()) return list.status();
  Table table({"NAME", "SHAPE", "DTYPE", "GROUP", "OWNERS"});
  Json json = {
      {"epoch", list->epoch}, {"step", list->step}, {"tensors", Json::array()}, {"buffers", Json::array()}};
  for (const auto& t : list->tensors) {
    const std::vector<int64_t> shape(t.spec().shape().begin(), t.spec().shape().end());
    std::vector<std::string> owners;
    Json owners_json = Json::array();
    for (const auto& o : t.owners()) {
      owners.push_back(o.server_id().empty() ? absl::StrCat("slot ", o.slot(), " (vacant)") : o.server_id());
      owners_json.push_back({{"slot", o.slot()},
                             {"server", o.server_id()},
                             {"begin_element", o.begin_element()},
                             {"end_element", o.end_element()}});
    }
    table.Add({t.spec().name(), ShapeText(shape), DTypeText(t.spec().dtype()),
               t.spec().frozen() ? "frozen" : absl::StrCat(t.spec().group()), absl::StrJoin(owners, ",")});
    json["tensors"].push_back({{"name", t.spec().name()},
                               {"shape", shape},
                               {"dtype", DTypeText(t.spec().dtype())},
                               {"group", t.spec().group()},
                               {"frozen", t.spec().frozen()},
                               {"unit", t.unit()},
                               {"planes", std::vector<std::string>(t.planes().begin(), t.planes().end())},
                               {"owners", std::move(owners_json)}});
  }
  for (const v1::Buffer& b : list->buffers) {
    const std::vector<int64_t> shape(b.shape().begin(), b.shape().end());
    table.Add({b.name(), ShapeText(shape), b.dtype(), "buffer", "-"});
    json["buffers"].push_back({{"name", b.name()}, {"shape", shape}, {"dtype", b.dtype()}});
  }
  context.out << (context.json ? Dump(json) : table.ToString());
  return absl::OkStatus();
}

absl::Status ShowStats(Context& context, const std::string& glob, const std::string& plane) {
  v1::TensorStatsRequest request;
  request.set_glob(glob);
  request.set_plane(plane);
  std::vector<v1::TensorStat> stats;
  absl::Status status = context.client.RetryUnavailable(context.deadline, [&] {
    stats.clear();
    return context.client.TensorStats(request, context.deadline, [&](v1::TensorStat& stat) {
      stats.push_back(stat);
      return absl::OkStatus();
    });
  });
  if (!status.ok()) return status;
  Table table({"NAME", "ELEMENTS", "NORM", "MEAN", "MIN", "MAX", "NANS", "INFS"});
  Json json = {{"step", stats.empty() ? 0 : stats[0].step()},
               {"plane", plane.empty() ? "param" : plane},
               {"tensors", Json::array()}};
  const auto number = [](double value) { return absl::StrFormat("%.6g", value); };
  for (const v1::TensorStat& s : stats) {
    table.Add({s.name(), absl::StrCat(s.elements()), number(s.norm()), number(s.mean()), number(s.min()),
               number(s.max()), absl::StrCat(s.nans()), absl::StrCat(s.infs())});
    json["tensors"].push_back({{"name", s.name()},
                               {"elements", s.elements()},
                               {"norm", Number(s.norm())},
                               {"mean", Number(s.mean())},
                               {"min", Number(s.min())},
                               {"max", Number(s.max())},
                               {"nans", s.nans()},
                               {"infs", s.infs()}});
  }
  context.out << (context.json ? Dump(json) : table.ToString());
  return absl::OkStatus();
}

}  // namespace sherd::cli
