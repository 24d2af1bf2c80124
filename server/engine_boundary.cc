// Engine: boundaries between steps, and who is woken.
#include "server/engine.h"

namespace sherd::server {

void Engine::PublishBoundary(const Effect& e) {
  records_->PublishBoundary({e.id, e.n, assignment_.epoch, pipeline_->offer()});
  RingOwners();
  ShowOwner(slot_);
}

absl::Status Engine::DecideBoundary(const Effect& e) {
  const Proposals before = records_->Decided();
  const Proposals decision = pipeline_->boundary_decision();
  // What is cut here is cut before what is stored here.
  const StepId after = records_->Done();
  if (decision.snapshot > before.snapshot) {
    work_.snapshots().Cut(decision.snapshot, after.step);
  }
  if (decision.import > before.import) {
    absl::Status status = work_.StoreImport(decision.import, after);
    if (!status.ok()) return status;
    memory_->control().import_steps[decision.import % runtime::ControlPage::kImportSteps] =
        after.step.value();
  }
  StepId stands_before = e.id;
  if (decision.ranges > before.ranges) {
    // What was consumed of the step in hand was so by other ranges: a trainer that comes must not rely on it.
    const int units = static_cast<int>(memory_->layout().units().size());
    for (int u = 0; u < units; ++u) {
      records_->Consumed(u).store(0, std::memory_order_seq_cst);
      if (memory_->place().several()) records_->Sliced(u).store(0, std::memory_order_seq_cst);
    }
    // Other ranks share out its samples anew: what was delivered of it is not used, the step is given up.
    const std::optional<runtime::Assignment> next = memory_->control().Find(decision.ranges);
    if (next.has_value() && next->world_size != assignment_.world_size) stands_before = e.id.NextAttempt();
  }
  records_->PublishBoundaryDone({stands_before, e.n, assignment_.epoch, decision});
  RingAll();
  ShowOwner(slot_);
  return absl::OkStatus();
}

void Engine::ChangeRanges(const Effect& e) {
  memory_->control().Activate(pipeline_->decided().ranges, e.id.step);
  pipeline_.reset();
  RingAll();
}

void Engine::RingOwners() {
  for (int m = 0; m < assignment_.servers; ++m) {
    if (m != slot_.value()) memory_->control().servers[m].bell.Ring();
  }
  memory_->RingAgent();
}

void Engine::RingTrainers() {
  for (int r = 0; r < assignment_.world_size; ++r) memory_->trainer(Rank(r)).bell.Ring();
  memory_->control().bell.Ring();
  memory_->RingAgent();
}

void Engine::RingAll() {
  RingTrainers();
  // Those that join too.
  for (int r = assignment_.world_size; r < memory_->places(); ++r) memory_->trainer(Rank(r)).bell.Ring();
  for (int m = 0; m < runtime::kMaxSlots; ++m) {
    if (m != slot_.value()) memory_->control().servers[m].bell.Ring();
  }
}

}  // namespace sherd::server
