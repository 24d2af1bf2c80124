#include "server/host_records.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/partition.h"

namespace sherd::server {
namespace {

using runtime::OwnerRecords;

constexpr uintptr_t kPageAlignment = 64;

char* Aligned(std::vector<char>& memory) {
  return memory.data() + (kPageAlignment - reinterpret_cast<uintptr_t>(memory.data()) % kPageAlignment);
}

OwnerProgress ProgressOf(const OwnerRecords& records, uint64_t ranges_epoch) {
  OwnerProgress p{records.Done(), records.Rejected(), std::nullopt, {}, {}};
  const OwnerPage page = records.ReadPage(p.InHand());
  if (page.boundary.n > 0 && page.boundary.ranges_epoch == ranges_epoch)
    p.offered = Mark::Of(page.boundary.before, page.boundary.n);
  p.boundary_done = Mark::Of(page.boundary_done.before, page.boundary_done.n);
  // Of which step it is follows from where the owner stands.
  for (const StepId id : {p.InHand(), StepId{p.done}}) {
    const std::optional<OwnerPrepared> prepared = records.ReadPrepared(id);
    if (prepared.has_value() && prepared->ranges_epoch == ranges_epoch && !p.prepared.has_value())
      p.prepared = id;
  }
  return p;
}

}  // namespace

PageCopy::PageCopy(const JobSpec* spec, const std::string& copy)
    : memory_(OwnerRecords::BytesFor(*spec) + kPageAlignment),
      records_(spec, Aligned(memory_)),
      whole_(records_.Put(copy)) {}

absl::Status HostRecords::Add(int host, v1::HostRecord record) {
  const auto bad = [&](const auto&... what) {
    return absl::DataLossError(absl::StrCat("host ", host, " sent ", what..., " for host ", lost_,
                                            ": run one version of Sherd on all hosts"));
  };
  const int index = record.index();
  if (record.has_about()) {
    const v1::HostRecord::About& about = record.about();
    if (about.host_of_slot_size() > kMaxServers) return bad(about.host_of_slot_size(), " slots");
    for (const int of : about.host_of_slot()) {
      if (of < 0 || of >= hosts_) return bad("a slot of host ", of, ", where hosts are 0..", hosts_ - 1, ",");
    }
    newest_ = std::max(newest_, about.incarnation());
    if (about_.host_of_slot().empty()) about_ = about;
    return absl::OkStatus();
  }
  if (record.has_owner()) {
    if (index < 0 || index >= about_.host_of_slot_size()) return bad("a record of slot ", index);
    const int of = about_.host_of_slot(index);
    if (of != host && of != lost_) return bad("a record of slot ", index, ", which host ", of, " has,");
    const PageCopy page(spec_, record.owner());
    if (!page.whole()) return bad(record.owner().size(), " bytes that are no record of slot ", index);
    pages_[host][index] = {std::move(*record.mutable_owner()),
                           ProgressOf(page.records(), about_.ranges_epoch()), page.records().ReadMarks()};
    return absl::OkStatus();
  }
  if (!record.has_step()) return bad("an empty record");
  if (index < 0 || index >= spec_->world_size) return bad("a record of rank ", index);
  if (runtime::RankRecords::StepOf(record.step()) == Step(0))
    return bad(record.step().size(), " bytes that are no record of rank ", index);
  steps_[index].push_back(std::move(*record.mutable_step()));
  return absl::OkStatus();
}

std::vector<int> HostRecords::LostSlots() const {
  std::vector<int> slots;
  for (int m = 0; m < about_.host_of_slot_size(); ++m) {
    if (about_.host_of_slot(m) == lost_) slots.push_back(m);
  }
  return slots;
}

absl::StatusOr<std::vector<Survivor>> HostRecords::Survivors() const {
  std::vector<Survivor> survivors;
  const size_t lost = LostSlots().size();
  for (const auto& [host, pages] : pages_) {
    Survivor& s = survivors.emplace_back();
    for (const auto& [slot, page] : pages) {
      (about_.host_of_slot(slot) == lost_ ? s.lost : s.own).push_back(page.progress);
    }
    if (s.own.empty() || s.lost.size() != lost) {
      return absl::DataLossError(absl::StrCat(
          "host ", host, " sent ", s.own.size(), " records of its own owners and ", s.lost.size(),
          " of host ", lost_, ", which has ", lost, ": run one version of Sherd on all hosts"));
    }
  }
  return survivors;
}

std::vector<std::string> HostRecords::LostPages(int slot) const {
  std::vector<const Page*> found;
  for (const auto& [host, pages] : pages_) {
    const auto page = pages.find(slot);
    if (page != pages.end()) found.push_back(&page->second);
  }
  std::sort(found.begin(), found.end(), [](const Page* a, const Page* b) { return a->marks < b->marks; });
  std::vector<std::string> out;
  for (const Page* page : found) out.push_back(page->copy);
  return out;
}

std::map<int, std::string> HostRecords::OwnPages() const {
  std::map<int, std::string> out;
  for (const auto& [host, pages] : pages_) {
    for (const auto& [slot, page] : pages) {
      if (about_.host_of_slot(slot) == host) out.emplace(slot, page.copy);
    }
  }
  return out;
}

}  // namespace sherd::server
