#include "client/torch/staging_allocator.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>
#include <utility>

namespace sherd::torch {
namespace {

thread_local StagingSource* t_source = nullptr;

// Sources that have lent places. Never destroyed: tensors may be freed while the program ends.
struct Registry {
  absl::Mutex mu;
  std::vector<std::shared_ptr<StagingSource>> sources ABSL_GUARDED_BY(mu);
  // Whatever was lent lies between these: other memory is told apart without a lock.
  std::atomic<uintptr_t> lowest{UINTPTR_MAX}, highest{0};
};
Registry& TheRegistry() {
  static Registry* const registry = new Registry;
  return *registry;
}

class Allocator : public at::Allocator {
 public:
  explicit Allocator(at::Allocator* before) : before_(before) {}

  at::DataPtr allocate(size_t bytes) const override {
    StagingSource* const source = t_source;
    // Autograd runs backward without grad mode; activations are made with it.
    if (source != nullptr && bytes >= kLeastBytes && !c10::GradMode::is_enabled()) {
      void* const p = source->Allocate(bytes);
      if (p != nullptr) return {p, p, &Free, at::Device(at::kCPU)};
    }
    at::DataPtr data = before_->allocate(bytes);
    // All of this allocator's memory must be freed the way it tells.
    [[maybe_unused]] const bool exchanged = data.compare_exchange_deleter(before_->raw_deleter(), &Free);
    return data;
  }
  at::DeleterFnPtr raw_deleter() const override {
    return before_->raw_deleter() == nullptr ? nullptr : &Free;
  }

  static void Install() {
    static Allocator* const installed = [] {
      auto* a = new Allocator(c10::GetCPUAllocator());
      // The highest priority: whatever is installed later must know what it does.
      c10::SetCPUAllocator(a, 255);
      return a;
    }();
    installed_ = installed;
  }

  // Smaller gradients are copied from the cache for next to nothing.
  static constexpr size_t kLeastBytes = 256 << 10;

 private:
  static void Free(void* p) {
    Registry& registry = TheRegistry();
    const auto at = reinterpret_cast<uintptr_t>(p);
    if (at >= registry.lowest.load(std::memory_order_acquire) &&
        at <= registry.highest.load(std::memory_order_acquire)) {
      std::shared_ptr<StagingSource> of;
      {
        absl::MutexLock lock(&registry.mu);
        for (const auto& s : registry.sources) {
          if (s->Owns(p)) of = s;
        }
      }
      if (of != nullptr) return of->Free(p);
    }
    installed_->before_->raw_deleter()(p);
  }

  static Allocator* installed_;
  at::Allocator* const before_;
};

Allocator* Allocator::installed_ = nullptr;

}  // namespace

std::shared_ptr<StagingSource> StagingSource::Create(std::shared_ptr<void> memory, std::vector<Size> sizes,
                                                     std::function<void*(int64_t)> borrow,
                                                     std::function<void(const void*)> give_back) {
  std::shared_ptr<StagingSource> source(new StagingSource);
  source->memory_ = std::move(memory);
  source->sizes_ = std::move(sizes);
  source->borrow_ = std::move(borrow);
  source->give_back_ = std::move(give_back);
  Registry& registry = TheRegistry();
  absl::MutexLock lock(&registry.mu);
  registry.sources.push_back(source);
  Allocator::Install();
  return source;
}

void StagingSource::Enter(StagingSource* source) { t_source = source; }

void StagingSource::Close() {
  if (t_source == this) t_source = nullptr;
  {
    absl::MutexLock lock(&mu_);
    closed_ = true;
  }
  Forget();
}

void StagingSource::Forget() {
  Registry& registry = TheRegistry();
  absl::MutexLock lock(&registry.mu);
  {
    absl::MutexLock mine(&mu_);
    if (!closed_ || !lent_.empty()) return;
  }
  auto& all = registry.sources;
  all.erase(std::remove_if(all.begin(), all.end(), [this](const auto& s) { return s.get() == this; }),
            all.end());
}

bool StagingSource::Owns(const void* p) const {
  absl::MutexLock lock(&mu_);
  return lent_.count(p) != 0;
}

void* StagingSource::Allocate(size_t bytes) {
  const auto size = std::find_if(sizes_.begin(), sizes_.end(),
                                 [&](const Size& s) { return s.requested == static_cast<int64_t>(bytes); });
  if (size == sizes_.end()) return nullptr;
  void* const p = borrow_(size->place);
  if (p == nullptr) return nullptr;
  Registry& registry = TheRegistry();
  const auto at = reinterpret_cast<uintptr_t>(p);
  for (uintptr_t low = registry.lowest.load(); at < low && !registry.lowest.compare_exchange_weak(low, at);) {
  }
  for (uintptr_t high = registry.highest.load();
       at > high && !registry.highest.compare_exchange_weak(high, at);) {
  }
  absl::MutexLock lock(&mu_);
  lent_.insert(p);
  return p;
}

void StagingSource::Free(void* p) {
  bool last = false;
  {
    absl::MutexLock lock(&mu_);
    lent_.erase(p);
    // Under the lock, so that Close waits for it.
    if (!closed_) give_back_(p);
    last = closed_ && lent_.empty();
  }
  if (last) Forget();
}

}  // namespace sherd::torch
