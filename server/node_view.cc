// Node: the job as a server shows it that cannot ask the coordinator.
#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/node.h"

namespace sherd::server {
namespace {

using runtime::MutexLock;

}  // namespace

std::optional<v1::Cluster> Node::ViewWithoutCoordinator() const {
  if (const std::string away = home_->StoreIsAway(); !away.empty() && coordinator() == nullptr)
    return OwnView(away);
  if (options_.place.index == 0) return std::nullopt;
  const absl::StatusOr<runtime::JobMemory*> memory = home_->Memory();
  if (!memory.ok()) return std::nullopt;
  const std::string problem = (*memory)->control().LinkProblem(0);
  return problem.empty() ? std::nullopt : OwnView(problem);
}

std::optional<v1::Cluster> Node::ViewUnanswered(const absl::Status& why) const {
  // Who leads there may just be changing; but one that is silent does not change.
  if (options_.place.index == 0)
    return absl::IsDeadlineExceeded(why) ? OwnView(std::string(why.message())) : std::nullopt;
  const std::optional<v1::Cluster> known = ViewWithoutCoordinator();  // it may have become known why
  return known.has_value()
             ? known
             : OwnView(absl::StrCat("host 0, with the coordinator, does not answer: ", why.message()));
}

std::optional<v1::Cluster> Node::OwnView(std::string waits_for) const {
  v1::Cluster view;
  {
    MutexLock lock(mu_);
    view = seen_;
  }
  if (view.job().empty()) return std::nullopt;
  view.set_job_dir(home_->dir().path());
  view.set_waiting_for(std::move(waits_for));
  view.clear_coordinator_id();
  view.clear_coordinator_address();
  const absl::StatusOr<runtime::JobMemory*> memory = home_->Memory();
  if (!memory.ok()) return view;
  if (const absl::StatusOr<StepId> done = (*memory)->DoneByAll(); done.ok())
    view.set_step(done->step.value());
  // What others have said of their links may be old; of its own this host knows.
  for (v1::Host& host : *view.mutable_hosts()) {
    if (host.index() != options_.place.index) continue;
    for (v1::HostLink& link : *host.mutable_links()) {
      const int peer = std::clamp(link.peer(), 0, runtime::ControlPage::kHosts - 1);
      link.set_problem((*memory)->control().LinkProblem(peer));
      link.set_up(link.problem().empty());
    }
  }
  return view;
}

}  // namespace sherd::server
