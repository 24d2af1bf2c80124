#include "server/host_gather.h"

#include <algorithm>
#include <utility>

#include "core/host_map.h"
#include "server/host_frames.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

using runtime::ControlPage;
using runtime::GatherPage;
using runtime::MemberEntry;
using runtime::MutexLock;

// A ring is lost only with its ringer; and how long to wait until there may be room.
constexpr absl::Duration kLookAgain = absl::Milliseconds(20);

}  // namespace

HostGather::HostGather(runtime::JobMemory* memory, runtime::SpinPolicy spin)
    : memory_(memory),
      spin_(spin),
      units_(static_cast<int>(memory->layout().units().size())),
      asked_(new std::atomic<uint64_t>[units_]()),
      arrived_(new std::atomic<uint64_t>[memory->place().count * units_]()) {
  const Layout& layout = memory->layout();
  const runtime::HostPlace& place = memory->place();
  elements_.resize(units_);
  bytes_.resize(units_);
  has_memory_.resize(units_);
  owners_.resize(units_);
  for (int u = 0; u < units_; ++u) {
    if (!memory->IsGathered(u)) continue;
    gathered_.push_back(u);
    const BlockRange unit = layout.units()[u].blocks;
    elements_[u] = unit.size() * kBlockElements;
    bytes_[u] = memory->GatheredBytes(u);
    for (int h = 0; h < place.count; ++h) {
      if (h != place.index && memory->InGroup(h) && !HostShare(unit, h, memory->grid()).empty())
        owners_[u].push_back(h);
    }
  }
  for (int r = 0; r < memory->spec().world_size; ++r) {
    if (memory->IsHere(Rank(r))) ranks_.push_back(r);
  }
  looked_.resize(ranks_.size());
  for (GatherPlan::Rank& r : looked_) r.wants.resize(units_);
  const GatherSpec& gather = memory->spec().gather;
  plan_ = std::make_unique<GatherPlan>(elements_, gather.max_live, gather.keep());
  run_ = std::thread([this] { Run(); });
}

HostGather::~HostGather() {
  stop_ = true;
  memory_->gather()->bell.Ring();
  run_.join();
}

bool HostGather::HasArrived(int host, int unit, uint64_t request) const {
  return ArrivedAt(host, unit).load(std::memory_order_acquire) == request;
}

void HostGather::Arrived(int host, int unit, uint64_t request) {
  ArrivedAt(host, unit).store(request, std::memory_order_release);
  memory_->gather()->bell.Ring();
}

void HostGather::Run() {
  GatherPage& page = *memory_->gather();
  bool ready = false;
  while (!stop_) {
    const uint32_t ticket = page.bell.Listen();
    if (!ready && (ready = Ready())) {
      // What the predecessor brought is here; of what it was about to bring or to give back nobody knows how
      // far it came.
      page.bytes = 0;
      for (const int u : gathered_) {
        const uint64_t values = page.here(u).load(std::memory_order_acquire);
        if (values == 0) {
          memory_->FreeGathered(u).IgnoreError();
        } else {
          plan_->Found(u, values);
          has_memory_[u] = true;
          CountBytes(bytes_[u]);
        }
      }
    }
    if (ready) Pass();
    page.bell.Wait(ticket, kLookAgain, spin_);
  }
}

bool HostGather::Ready() {
  GatherPage& page = *memory_->gather();
  if (memory_->control().initialized.load(std::memory_order_acquire) == 0) return false;
  if (page.given_back.load(std::memory_order_acquire) != 0) return true;
  const runtime::HostPlace& place = memory_->place();
  if (place.index == 0) {
    for (int h = 1; h < place.count; ++h) {
      if ((page.said[h].load(std::memory_order_acquire) & kInitialized) == 0) return false;
    }
    if (const absl::Status s = memory_->GiveBackInitial(); !s.ok()) {
      spdlog::warn("the initial values of other hosts' shares stay here: {}", s.ToString());
    }
  }
  page.given_back.store(1, std::memory_order_release);
  return true;
}

void HostGather::Pass() {
  Publish();
  std::vector<GatherPlan::Start> again;
  std::swap(again, waiting_);
  bool told = false;
  for (const GatherPlan::Start& s : again) told |= Start(s);
  Look();
  if (told) memory_->control().link_bell.Ring();
}

// Units that are here now.
void HostGather::Publish() {
  bool some = false;
  for (const int u : gathered_) {
    const uint64_t request = asked_[u].load(std::memory_order_relaxed);
    if (request == 0) continue;
    const bool whole =
        std::all_of(owners_[u].begin(), owners_[u].end(), [&](int h) { return HasArrived(h, u, request); });
    if (!whole) continue;
    asked_[u].store(0, std::memory_order_release);
    memory_->gather()->here(u).store(plan_->Arrived(u), std::memory_order_seq_cst);
    some = true;
  }
  if (!some) return;
  for (const int r : ranks_) memory_->trainer(Rank(r)).bell.Ring();
}

void HostGather::Look() {
  for (size_t i = 0; i < ranks_.size(); ++i) {
    const Rank rank(ranks_[i]);
    GatherPlan::Rank& to = looked_[i];
    to.attached = memory_->trainer(rank).state.load(std::memory_order_acquire) == MemberEntry::kAttached;
    to.recorded = 0;
    for (const Mark& m : memory_->rank(rank).StepMarks())
      to.recorded = std::max(to.recorded, m.id().step.value());
    for (const int u : gathered_) {
      to.wants[u] = UnitWant::Of(memory_->rank(rank).Gather(u).load(std::memory_order_seq_cst));
      to.wants[u].turn = memory_->rank(rank).GatherTurn(u).load(std::memory_order_relaxed);
    }
  }
  const GatherPlan::Effects now = plan_->Look(looked_);
  for (const int u : now.free) Free(u);
  for (const GatherPlan::Start& s : now.start) {
    const auto left = std::find(left_.begin(), left_.end(), s.unit);
    if (left == left_.end()) continue;
    left_elements_ -= elements_[s.unit];
    left_.erase(left);
  }
  MakeRoom();
  bool told = false;
  for (const GatherPlan::Start& s : now.start) told |= Start(s);
  if (told) memory_->control().link_bell.Ring();
}

void HostGather::Free(int unit) {
  std::atomic<uint64_t>& here = memory_->gather()->here(unit);
  const uint64_t values = here.load(std::memory_order_relaxed);
  here.store(0, std::memory_order_seq_cst);
  for (const int r : ranks_) {
    if (UnitWant::Of(memory_->rank(Rank(r)).Gather(unit).load(std::memory_order_seq_cst)).how ==
        UnitWant::kNot)
      continue;
    // It may be in use already.
    here.store(values, std::memory_order_seq_cst);
    plan_->Found(unit, values);
    memory_->trainer(Rank(r)).bell.Ring();
    return;
  }
  left_.push_back(unit);
  left_elements_ += elements_[unit];
}

void HostGather::MakeRoom() {
  while (!left_.empty() && plan_->live() + left_elements_ > memory_->spec().gather.max_live) GiveBack();
}

void HostGather::GiveBack() {
  const int unit = left_.front();
  left_.pop_front();
  left_elements_ -= elements_[unit];
  has_memory_[unit] = false;
  memory_->FreeGathered(unit).IgnoreError();
  CountBytes(-bytes_[unit]);
}

absl::Status HostGather::Reserve(int unit) {
  absl::Status s = memory_->ReserveGathered(unit);
  for (; !s.ok() && !left_.empty(); s = memory_->ReserveGathered(unit)) GiveBack();
  if (!s.ok()) return s;
  has_memory_[unit] = true;
  CountBytes(bytes_[unit]);
  return s;
}

// True: others have to be asked.
bool HostGather::Start(const GatherPlan::Start& start) {
  GatherPage& page = *memory_->gather();
  // Of older values, which others are about to be received over.
  page.here(start.unit).store(0, std::memory_order_seq_cst);
  if (!has_memory_[start.unit]) {
    if (const absl::Status s = Reserve(start.unit); !s.ok()) {
      if (page.trouble.state.load() != ControlPage::LinkState::kDown) spdlog::warn("{}", s.ToString());
      page.trouble.Set(ControlPage::LinkState::kDown, s.message());
      waiting_.push_back(start);
      return false;
    }
    page.trouble.Set(ControlPage::LinkState::kUp, "");
  }
  asked_[start.unit].store(page.requests.fetch_add(1) + 1, std::memory_order_release);
  return true;
}

void HostGather::CountBytes(int64_t change) {
  GatherPage& page = *memory_->gather();
  const int64_t now = page.bytes.fetch_add(change) + change;
  if (now > page.peak_bytes.load()) page.peak_bytes.store(now);
}

void GatherRequests::Put(const Request& request) {
  MutexLock lock(mu_);
  requests_.erase(std::remove_if(requests_.begin(), requests_.end(),
                                 [&](const Request& r) { return r.unit == request.unit; }),
                  requests_.end());
  requests_.push_back(request);
}

bool GatherRequests::Take(Request* request) {
  MutexLock lock(mu_);
  if (requests_.empty()) return false;
  *request = requests_.front();
  requests_.pop_front();
  return true;
}

}  // namespace sherd::server
