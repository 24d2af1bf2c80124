#include "client/parameter_window.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"

namespace sherd::client {
namespace {

constexpr uintptr_t kPage = runtime::Segment::kPageBytes;

// A view of some blocks of a segment, at an address of its own: the pages they lie in, whose first and last
// may hold blocks of neighbours too.
class View {
 public:
  View() = default;
  View(View&& other) noexcept { *this = std::move(other); }
  View& operator=(View&& other) noexcept {
    std::swap(map_, other.map_);
    std::swap(bytes_, other.bytes_);
    std::swap(base_, other.base_);
    return *this;
  }
  ~View() {
    if (map_ != nullptr) ::munmap(map_, bytes_);
  }

  // `from` lies in a mapping that is shared. Not readable at first.
  static absl::StatusOr<View> Of(const void* from, int64_t bytes) {
    View view;
    if (bytes == 0) return view;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(from) / kPage * kPage;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(from) + bytes + kPage - 1) / kPage * kPage;
    void* const old = reinterpret_cast<void*>(begin);
    void* const place = runtime::ReserveAligned(static_cast<int64_t>(end - begin), old);
    // An old size of 0 leaves the old mapping of a shared object in place and makes another.
    void* map =
        place == MAP_FAILED ? place : ::mremap(old, 0, end - begin, MREMAP_MAYMOVE | MREMAP_FIXED, place);
    if (map == MAP_FAILED) {
      const absl::Status failed =
          absl::ErrnoToStatus(errno, absl::StrCat("cannot map ", end - begin, " bytes of parameters"));
      if (place != MAP_FAILED) ::munmap(place, end - begin);
      return failed;
    }
    view.map_ = map;
    view.bytes_ = end - begin;
    view.base_ = static_cast<char*>(map) + (reinterpret_cast<uintptr_t>(from) - begin);
    if (::madvise(map, view.bytes_, MADV_DONTFORK) != 0) return absl::ErrnoToStatus(errno, "madvise");
    if (absl::Status s = view.Protect(PROT_NONE); !s.ok()) return s;
    return view;
  }

  absl::Status Protect(int protection) const {
    if (map_ == nullptr || ::mprotect(map_, bytes_, protection) == 0) return absl::OkStatus();
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot change the protection of ", bytes_,
                                                   " bytes of parameters (vm.max_map_count?)"));
  }
  const char* base() const { return base_; }
  int64_t bytes() const { return static_cast<int64_t>(bytes_); }

 private:
  void* map_ = nullptr;
  size_t bytes_ = 0;
  const char* base_ = nullptr;
};

class SharedUnitsSource : public UnitSource {
 public:
  explicit SharedUnitsSource(std::shared_ptr<runtime::JobMemory> memory) : memory_(std::move(memory)) {}

  absl::Status Map() {
    const Layout& layout = memory_->layout();
    for (const UnitInfo& u : layout.units()) {
      bool wide = false, narrow = false;
      for (int t = u.first_tensor; t < u.end_tensor; ++t) {
        const TensorInfo& info = layout.tensors()[t];
        if (info.numel > 0) (info.spec.dtype == DType::kFloat32 ? wide : narrow) = true;
      }
      const int64_t begin = u.blocks.begin * kBlockElements, elements = u.blocks.size() * kBlockElements;
      Unit unit;
      if (wide) {
        absl::StatusOr<View> view = View::Of(memory_->plane(0) + begin, elements * 4);
        if (!view.ok()) return view.status();
        unit.wide = *std::move(view);
      }
      if (narrow) {
        absl::StatusOr<View> view = View::Of(memory_->compute() + begin, elements * 2);
        if (!view.ok()) return view.status();
        unit.narrow = *std::move(view);
      }
      units_.push_back(std::move(unit));
    }
    return absl::OkStatus();
  }

  const char* Base(int unit, bool compute) const override {
    return (compute ? units_[unit].narrow : units_[unit].wide).base();
  }
  int64_t Bytes(int unit) const override { return units_[unit].wide.bytes() + units_[unit].narrow.bytes(); }
  void Begin(int unit) override {
    Unit& u = units_[unit];
    u.status = u.wide.Protect(PROT_READ);
    u.status.Update(u.narrow.Protect(PROT_READ));
  }
  absl::Status Await(int unit) override { return units_[unit].status; }
  void Drop(int unit) override {
    // What cannot be made inaccessible stays readable, and right.
    units_[unit].wide.Protect(PROT_NONE).IgnoreError();
    units_[unit].narrow.Protect(PROT_NONE).IgnoreError();
  }

 private:
  struct Unit {
    View wide, narrow;
    absl::Status status;
  };
  const std::shared_ptr<runtime::JobMemory> memory_;
  std::vector<Unit> units_;
};

std::vector<PrefetchPlan::Unit> PlanUnits(const Layout& layout, const std::vector<bool>& persistent) {
  std::vector<PrefetchPlan::Unit> units;
  for (size_t u = 0; u < layout.units().size(); ++u) {
    units.push_back({layout.units()[u].blocks.size() * kBlockElements, persistent[u]});
  }
  return units;
}

}  // namespace

absl::StatusOr<std::unique_ptr<UnitSource>> SharedUnits(std::shared_ptr<runtime::JobMemory> memory) {
  auto source = std::make_unique<SharedUnitsSource>(std::move(memory));
  if (absl::Status mapped = source->Map(); !mapped.ok()) return mapped;
  return std::unique_ptr<UnitSource>(std::move(source));
}

ParameterWindow::ParameterWindow(const Layout& layout, const std::vector<bool>& persistent,
                                 const PrefetchLimits& limits, std::unique_ptr<UnitSource> source)
    : layout_(layout),
      source_(std::move(source)),
      plan_(PlanUnits(layout, persistent), limits),
      under_way_(persistent.size(), false),
      readable_(new std::atomic<int>[persistent.size()](), std::default_delete<std::atomic<int>[]>()) {}

absl::StatusOr<std::unique_ptr<ParameterWindow>> ParameterWindow::Create(const Layout& layout,
                                                                         const std::vector<bool>& persistent,
                                                                         const PrefetchLimits& limits,
                                                                         std::unique_ptr<UnitSource> source) {
  const size_t units = layout.units().size();
  if (persistent.size() != units) {
    return absl::InvalidArgumentError(
        absl::StrCat("the layout has ", units, " units, not ", persistent.size()));
  }
  auto window = absl::WrapUnique(new ParameterWindow(layout, persistent, limits, std::move(source)));
  for (size_t u = 0; u < units; ++u) {
    if (persistent[u]) window->Begin(static_cast<int>(u));
  }
  for (size_t u = 0; u < units; ++u) {
    if (absl::Status there = window->Await(static_cast<int>(u)); !there.ok()) return there;
  }
  return window;
}

const void* ParameterWindow::Address(int tensor) const {
  const TensorInfo& info = layout_.tensors()[tensor];
  if (info.numel == 0) return nullptr;
  const int64_t at = (info.blocks.begin - layout_.units()[info.unit].blocks.begin) * kBlockElements;
  return source_->Base(info.unit, info.spec.dtype != DType::kFloat32) + at * SizeOf(info.spec.dtype);
}

void ParameterWindow::Begin(int unit) {
  source_->Begin(unit);
  under_way_[unit] = true;
  live_bytes_ += source_->Bytes(unit);
  peak_live_bytes_ = std::max(peak_live_bytes_, live_bytes_);
}

absl::Status ParameterWindow::Await(int unit) {
  if (!under_way_[unit]) return absl::OkStatus();
  if (absl::Status there = source_->Await(unit); !there.ok()) return there;
  under_way_[unit] = false;
  readable_.get()[unit].store(1, std::memory_order_release);
  return absl::OkStatus();
}

void ParameterWindow::Drop(const std::vector<int>& units) {
  for (const int u : units) {
    under_way_[u] = false;  // what was gathered ahead and never used
    readable_.get()[u].store(0, std::memory_order_release);
    source_->Drop(u);
    live_bytes_ -= source_->Bytes(u);
  }
}

absl::Status ParameterWindow::Renew() {
  for (size_t u = 0; u < under_way_.size(); ++u) {
    if (!plan_.in_use(static_cast<int>(u))) continue;
    if (absl::Status there = source_->Renew(static_cast<int>(u)); !there.ok()) return there;
  }
  return absl::OkStatus();
}

absl::Status ParameterWindow::Gather(int unit) {
  const PrefetchPlan::Effects now = plan_.Use(unit);
  Drop(now.release);
  if (now.gather >= 0) Begin(now.gather);
  for (const int u : now.prefetch) Begin(u);
  absl::Status there = Await(unit);
  if (!there.ok()) Release(unit);
  return there;
}

ParameterWindow::Stats ParameterWindow::stats() const {
  Stats s;
  static_cast<PrefetchPlan::Stats&>(s) = plan_.stats();
  s.live_bytes = live_bytes_;
  s.peak_live_bytes = peak_live_bytes_;
  return s;
}

}  // namespace sherd::client
