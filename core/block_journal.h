// Mutating a block in place so that a death at any instant tears nothing (DESIGN.md, the block journal).
//
//   JournalSlot& slot = ...;                       // one per worker, in memory that survives it
//   JournaledMutate(slot, stamp, mark, block, [&] { copy the block's planes to the slot's buffer },
//                   [&] { update them in place });
//   // In one pass, piece by piece: copy, raise slot.saved, update.
//   JournaledPass(slot, stamp, mark, block, [&] { ... });
// After a death: RecoverSlot puts the block in hand back, if it was not stamped; then every block whose stamp
// is older than the mark is mutated again. So each block is mutated exactly once per mark.
//
// Only the order of stores matters, and only against the death of the process that makes them: a process is
// stopped between two instructions, and every store before that point is seen by all. Release order keeps the
// compiler (and weaker processors) to it.
#ifndef SHERD_CORE_BLOCK_JOURNAL_H_
#define SHERD_CORE_BLOCK_JOURNAL_H_

#include <atomic>
#include <cstdint>

#include "core/mark.h"

namespace sherd {

// In shared memory; zero is disarmed.
struct JournalSlot {
  std::atomic<uint64_t> block_plus_1;
  std::atomic<uint64_t> mark;
  // Elements of each plane that the slot's buffer holds, from the first: others have not changed.
  std::atomic<uint64_t> saved;
};
static_assert(sizeof(JournalSlot) == 24 && std::atomic<uint64_t>::is_always_lock_free);
// JournalSlot::saved of a buffer that holds the block whole.
constexpr uint64_t kAllSaved = ~uint64_t{0};

// Called between the stores that make up a journaled mutation. The simulator's kills there.
struct NoTick {
  void operator()() const {}
};

// Arms, saves and mutates in one pass, stamps. `pass` never changes an element that is not in the slot's
// buffer, nor does it before slot.saved, 0 at first, says so. The slot's former block, if any, must be
// stamped. Wait-free. One thread per slot; no two slots may hold the same block.
template <typename Pass, typename Tick = NoTick>
inline void JournaledPass(JournalSlot& slot, std::atomic<uint64_t>& stamp, Mark mark, int64_t block,
                          Pass&& pass, Tick&& tick = Tick()) {
  slot.block_plus_1.store(0, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  tick();
  slot.saved.store(0, std::memory_order_relaxed);
  slot.mark.store(mark.word(), std::memory_order_relaxed);
  slot.block_plus_1.store(static_cast<uint64_t>(block) + 1, std::memory_order_release);
  std::atomic_thread_fence(std::memory_order_release);
  tick();
  pass();
  tick();
  stamp.store(mark.word(), std::memory_order_release);
}

// The same in two passes: what `save` has copied is whole before `mutate` changes anything.
template <typename Save, typename Mutate, typename Tick = NoTick>
inline void JournaledMutate(JournalSlot& slot, std::atomic<uint64_t>& stamp, Mark mark, int64_t block,
                            Save&& save, Mutate&& mutate, Tick&& tick = Tick()) {
  JournaledPass(
      slot, stamp, mark, block,
      [&] {
        save();
        tick();
        slot.saved.store(kAllSaved, std::memory_order_release);
        std::atomic_thread_fence(std::memory_order_release);
        tick();
        mutate();
      },
      tick);
}

// Undoes what a dead worker left half done: restore(block, saved) copies the first `saved` elements of each
// plane (kAllSaved: all) back from the slot's buffer, if the armed block's stamp (stamp_of(block)) is older
// than the slot's mark. Disarms. May itself die anywhere and be repeated. REQUIRES: the worker is dead.
template <typename StampOf, typename Restore>
inline void RecoverSlot(JournalSlot& slot, StampOf&& stamp_of, Restore&& restore) {
  const uint64_t armed = slot.block_plus_1.load(std::memory_order_acquire);
  if (armed == 0) return;
  const int64_t block = static_cast<int64_t>(armed - 1);
  if (Mark(stamp_of(block)) < Mark(slot.mark.load(std::memory_order_relaxed)))
    restore(block, slot.saved.load(std::memory_order_relaxed));
  std::atomic_thread_fence(std::memory_order_release);
  slot.block_plus_1.store(0, std::memory_order_release);
}

}  // namespace sherd

#endif  // SHERD_CORE_BLOCK_JOURNAL_H_
