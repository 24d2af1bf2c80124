// Lets libtorch compute large gradients where the owners will read them, so that nobody has to copy them.
//
//   auto source = StagingSource::Create(memory, sizes, borrow, give_back);
//   StagingSource::Enter(source.get());     // from here on, on this thread, tensors of one of `sizes` made
//   loss.backward();                        // without grad mode stand in places that `borrow` gives
//   StagingSource::Enter(nullptr);
//   source->Owns(grad.data_ptr());
//   source->Close();                        // before what `borrow` uses goes away
//
// How. The first source replaces libtorch's allocator for the CPU by one that asks the thread's source when
// the size is right, and otherwise is the one before. A place goes back when its tensor's storage is freed,
// whenever and on whichever thread that is.
#ifndef SHERD_CLIENT_TORCH_STAGING_ALLOCATOR_H_
#define SHERD_CLIENT_TORCH_STAGING_ALLOCATOR_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace sherd::torch {

class StagingSource {
 public:
  struct Size {
    int64_t requested;  // bytes of a tensor, exactly
    int64_t place;      // bytes to borrow for it
  };
  // `borrow` gives `place` bytes or null; it is called on threads that entered, and must not make tensors.
  // `give_back` is called from any thread. Neither is called after Close. `memory` is kept as long as
  // anything stands in it.
  static std::shared_ptr<StagingSource> Create(std::shared_ptr<void> memory, std::vector<Size> sizes,
                                               std::function<void*(int64_t place)> borrow,
                                               std::function<void(const void*)> give_back);

  // The thread's source from now on; null for none.
  static void Enter(StagingSource* source);

  // No more places are asked for or given back; tensors that stand in some stay whole.
  void Close();
  // A tensor stands at `p` now.
  bool Owns(const void* p) const;

  // For the allocator.
  void* Allocate(size_t bytes);
  void Free(void* p);

 private:
  StagingSource() = default;
  // Nobody needs it any more once it is closed and has everything back.
  void Forget();

  std::shared_ptr<void> memory_;
  std::vector<Size> sizes_;
  std::function<void*(int64_t)> borrow_;
  std::function<void(const void*)> give_back_;
  mutable absl::Mutex mu_;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  std::set<const void*> lent_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::torch

#endif  // SHERD_CLIENT_TORCH_STAGING_ALLOCATOR_H_
