#include "server/snapshot_keeper.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/optimizer_kinds.h"

namespace sherd::server {

using runtime::SnapshotEntry;

struct SnapshotKeeper::Opened {
  Opened(SnapshotEntry* e, uint64_t i, SnapshotPool p) : entry(e), id(i), pool(std::move(p)) {}
  ~Opened() {
    cancel = true;
    if (touching.joinable()) touching.join();
  }
  bool released() const { return entry->id.load(std::memory_order_acquire) != id; }

  SnapshotEntry* const entry;
  const uint64_t id;
  SnapshotPool pool;
  std::atomic<bool> cancel{false};
  std::thread touching;
};

SnapshotKeeper::SnapshotKeeper(runtime::JobMemory* memory, runtime::OwnerRecords* records)
    : memory_(memory), records_(records) {}

SnapshotKeeper::~SnapshotKeeper() {
  if (dropping_.joinable()) dropping_.join();
}

bool SnapshotKeeper::AnyTrainer() const {
  for (int r = 0; r < memory_->places(); ++r) {
    if (memory_->trainer(Rank(r)).state.load(std::memory_order_acquire) == runtime::MemberEntry::kAttached)
      return true;
  }
  return false;
}

void SnapshotKeeper::Drop(std::unique_ptr<Opened> opened) {
  if (dropping_.joinable()) dropping_.join();
  dropping_ = std::thread([o = std::move(opened)]() mutable { o.reset(); });
}

void SnapshotKeeper::DropReleased(List* list) {
  for (std::unique_ptr<Opened>& o : *list) {
    if (o->released()) Drop(std::move(o));
  }
  list->erase(std::remove(list->begin(), list->end(), nullptr), list->end());
}

std::unique_ptr<SnapshotKeeper::Opened> SnapshotKeeper::Take(uint64_t id) {
  for (List* list : {&coming_, &active_}) {
    for (std::unique_ptr<Opened>& o : *list) {
      if (o != nullptr && o->id == id) return std::move(o);
    }
  }
  return nullptr;
}

std::unique_ptr<SnapshotKeeper::Opened> SnapshotKeeper::Open(SnapshotEntry& entry, uint64_t id) {
  absl::StatusOr<SnapshotPool> pool = SnapshotPool::Open(*memory_, id);
  if (!pool.ok()) {
    // Released at this moment: nobody reads it any more. Or there is no memory to map it with: its reader
    // finds out that it is lost, before anything of it changes.
    if (!absl::IsNotFound(pool.status()) && entry.id.load(std::memory_order_acquire) == id)
      entry.overflowed.store(1, std::memory_order_seq_cst);
    return nullptr;
  }
  return std::make_unique<Opened>(&entry, id, *std::move(pool));
}

void SnapshotKeeper::Look(const std::vector<UnitRange>& ranges) {
  DropReleased(&coming_);
  DropReleased(&active_);
  runtime::ControlPage& control = memory_->control();
  const uint64_t newest = control.proposals.snapshot.load(std::memory_order_acquire);
  if (newest == seen_) return;
  for (SnapshotEntry& e : control.snapshots) {
    const uint64_t id = e.id.load(std::memory_order_acquire);
    if (id <= seen_ || id > newest || !AnyTrainer()) continue;
    // Cut before it was seen here, and in use: its places are touched as blocks are kept.
    const auto is_it = [id](const std::unique_ptr<Opened>& o) { return o->id == id; };
    if (std::any_of(active_.begin(), active_.end(), is_it)) continue;
    std::unique_ptr<Opened> opened = Open(e, id);
    if (opened == nullptr) continue;
    opened->touching = std::thread([o = opened.get(), ranges] {
      // The pool is reserved already: this only spares the steps the page faults.
      for (const UnitRange& r : ranges) {
        if (!o->pool.Populate(r.blocks, &o->cancel).ok()) return;
      }
    });
    coming_.push_back(std::move(opened));
  }
  seen_ = newest;
}

void SnapshotKeeper::Begin(Step step, bool at_boundary) {
  List found;
  for (SnapshotEntry& e : memory_->control().snapshots) {
    const uint64_t id = e.id.load(std::memory_order_acquire);
    const uint64_t cut_plus_1 = e.cut_plus_1.load(std::memory_order_acquire);
    if (id == 0 || cut_plus_1 == 0) continue;
    const uint64_t cut = cut_plus_1 - 1;
    if (at_boundary ? cut > step.value() : cut >= step.value()) continue;
    std::unique_ptr<Opened> opened = Take(id);
    if (opened == nullptr) opened = Open(e, id);
    if (opened != nullptr) found.push_back(std::move(opened));
  }
  coming_.erase(std::remove(coming_.begin(), coming_.end(), nullptr), coming_.end());
  for (std::unique_ptr<Opened>& o : active_) {
    if (o != nullptr) Drop(std::move(o));
  }
  active_ = std::move(found);
}

void SnapshotKeeper::Preserve(BlockRange blocks) {
  runtime::ControlPage& control = memory_->control();
  const float* planes[1 + kernels::kMaxPlanes] = {};
  for (const std::unique_ptr<Opened>& s : active_) {
    for (int64_t done = blocks.begin; done < blocks.end;) {
      const uint32_t ticket = control.bell.Listen();
      if (s->released()) break;
      for (int p = 0; p < memory_->planes(); ++p) {
        const bool has = done < memory_->plane_blocks(p);
        planes[p] = has ? memory_->plane(p) + done * kBlockElements : nullptr;
      }
      done += s->pool.Preserve(*s->entry, {done, blocks.end}, planes);
      if (done == blocks.end) break;
      if (s->entry->wait_when_full.load(std::memory_order_relaxed) == 0) {
        // Seen before anything of these blocks changes: the reader finds out that its snapshot is lost.
        s->entry->overflowed.store(1, std::memory_order_seq_cst);
        break;
      }
      control.bell.Wait(ticket, absl::Milliseconds(1), runtime::SpinPolicy::None());
    }
  }
}

void SnapshotKeeper::Cut(uint64_t last, Step step) {
  for (SnapshotEntry& e : memory_->control().snapshots) {
    const uint64_t id = e.id.load(std::memory_order_acquire);
    if (id == 0 || id > last || e.cut_plus_1.load(std::memory_order_acquire) != 0) continue;
    if (step.value() < e.not_before.load(std::memory_order_relaxed)) continue;
    absl::StatusOr<SnapshotPool> pool = SnapshotPool::Open(*memory_, id);
    if (!pool.ok()) continue;  // released
    // The own page has the step's verdict, unless this slot is new: then all owners' have, and so slot 0's.
    const std::optional<Verdict> own = records_->LastVerdict();
    pool->SaveAtCut(*memory_, step,
                    own.has_value() && own->id.step == step ? own->loss_scale : memory_->CurrentLossScale());
    uint64_t undecided = 0;
    e.cut_plus_1.compare_exchange_strong(undecided, step.value() + 1, std::memory_order_seq_cst);
  }
}

}  // namespace sherd::server
