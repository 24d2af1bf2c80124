// Events and effects of MembershipState as lines of text.
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "core/membership.h"

namespace sherd {
namespace {

struct EventText {
  std::string operator()(const HostJoined& e) const {
    return absl::StrCat("host-joined ", absl::CHexEscape(e.host.name),
                        " address=", absl::CHexEscape(e.host.address), " ranks=", e.host.ranks,
                        " servers=", e.host.servers, " index=", e.index, Request(e.request));
  }
  std::string operator()(const ServerJoined& e) const {
    return absl::StrCat("server-joined ", absl::CHexEscape(e.id), " process=", Show(e.process),
                        " address=", absl::CHexEscape(e.address), " host=", absl::CHexEscape(e.host),
                        Request(e.request));
  }
  std::string operator()(const ServerLeft& e) const {
    return absl::StrCat("server-left ", absl::CHexEscape(e.id), " process=", Show(e.process),
                        Request(e.request));
  }
  std::string operator()(const ServerDead& e) const {
    return absl::StrCat("server-dead ", absl::CHexEscape(e.id), " process=", Show(e.process));
  }
  std::string operator()(const TrainerAttached& e) const {
    return absl::StrCat("trainer-attached ", e.rank.value(), " process=", Show(e.process),
                        " host=", absl::CHexEscape(e.host), " world=", e.world_size,
                        " layout=", absl::Hex(e.layout_hash), Request(e.request));
  }
  std::string operator()(const TrainerDetached& e) const {
    return absl::StrCat("trainer-detached ", e.rank.value(), " process=", Show(e.process),
                        " finished=", e.finished, Request(e.request));
  }
  std::string operator()(const TrainerDead& e) const {
    return absl::StrCat("trainer-dead ", e.rank.value(), " process=", Show(e.process));
  }
  std::string operator()(const TrainerReady& e) const {
    return absl::StrCat("trainer-ready ", e.rank.value(), " process=", Show(e.process));
  }
  std::string operator()(const ResizeRequested& e) const {
    return absl::StrCat("resize ", e.servers, e.trainers == 0 ? "" : absl::StrCat(" trainers=", e.trainers),
                        e.from_step.value() == 0 ? "" : absl::StrCat(" from=", e.from_step.value()),
                        e.give_up_step ? " give_up=1" : "", Request(e.request));
  }
  std::string operator()(const DrainRequested& e) const {
    return absl::StrCat("drain ", absl::CHexEscape(e.id), Request(e.request));
  }
  std::string operator()(const RangesApplied& e) const {
    return absl::StrCat("ranges-applied ", e.ranges_epoch.value());
  }
  std::string operator()(const Recovered&) const { return "recovered"; }

  static std::string Request(const std::string& request) {
    return request.empty() ? "" : absl::StrCat(" request=", absl::CHexEscape(request));
  }
};

struct EffectText {
  std::string operator()(const CommitEpoch& e) const { return absl::StrCat("commit ", Show(e.doc)); }
  std::string operator()(const MustBeDead& e) const {
    return absl::StrCat("must-be-dead ",
                        e.server_id.empty() ? absl::StrCat("rank ", e.rank.value())
                                            : absl::StrCat("server ", absl::CHexEscape(e.server_id)),
                        " process=", Show(e.process), " host=", absl::CHexEscape(e.host));
  }
  std::string operator()(const ProposeAssignment& e) const {
    return absl::StrCat("propose assignment ", e.ranges_epoch.value(), " servers=", e.servers,
                        e.trainers == 0 ? "" : absl::StrCat(" trainers=", e.trainers));
  }
  std::string operator()(const RetireServer& e) const {
    return absl::StrCat("retire ", absl::CHexEscape(e.id), " process=", Show(e.process));
  }
  std::string operator()(const Answer& e) const {
    return absl::StrCat("answer ", absl::CHexEscape(e.request), " ",
                        absl::StatusCodeToString(e.status.code()), e.status.ok() ? "" : ": ",
                        e.status.message());
  }
};

}  // namespace

std::string Show(const Event& event) { return absl::visit(EventText(), event); }
std::string Show(const MembershipEffect& effect) { return absl::visit(EffectText(), effect); }

absl::string_view Show(Liveness liveness) {
  switch (liveness) {
    case Liveness::kVacant:
      return "vacant";
    case Liveness::kAlive:
      return "alive";
    case Liveness::kUnverified:
      return "unverified";
    case Liveness::kLeft:
      return "left";
    case Liveness::kDead:
      return "dead";
  }
  return "unknown";
}

}  // namespace sherd
