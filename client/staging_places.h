// Which parts of a rank's staging are in use, and by what. Bookkeeping only: the memory is the caller's.
//
//   StagingPlaces places;
//   places.AddChunk(0, data, bytes);
//   places.SetHomes(units);                          // stages 0 and 1: each unit has a home in chunk 0
//   auto place = places.Take(unit, bytes, until);    // to copy gradients to
//   void* p = places.Borrow(bytes);                 // or to compute gradients in
//   places.Assign(p, unit, bytes, until);            // ... which turned out to be those of `unit`
//   places.Return(p);                             // whoever borrowed it does not touch it any more
//
// A place is free again when it was returned and its unit's gradients, if it holds any, were consumed.
// Thread-safe. Never blocks.
#ifndef SHERD_CLIENT_STAGING_PLACES_H_
#define SHERD_CLIENT_STAGING_PLACES_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "core/mark.h"

namespace sherd::client {

class StagingPlaces {
 public:
  struct Place {
    uint32_t chunk = 0;
    int64_t offset = 0, bytes = 0;
  };

  // Chunks come in the order of their indices, from 0.
  void AddChunk(char* data, int64_t bytes);
  // Chunk 0 consists of these places, one a unit, by unit; it is not handed out otherwise. A unit may stand
  // in the home of another of the same size.
  void SetHomes(std::vector<Place> homes);

  // A free place for `unit`, its own home if that is one, in use until the unit is consumed up to `until`.
  std::optional<Place> Take(int unit, int64_t bytes, Mark until);
  // Notes that a place is in use, as a predecessor left it.
  void Restore(const Place& place, int unit, Mark until);

  // A free place for whatever it turns out to be, in use until Return; null if there is none.
  void* Borrow(int64_t bytes);
  // The borrowed place at `p` holds the gradients of `unit`. nullopt: `p` is no borrowed place of `bytes`, or
  // assigned already.
  std::optional<Place> Assign(const void* p, int unit, int64_t bytes, Mark until);
  // REQUIRES: `p` came from Borrow and was not returned.
  void Return(const void* p);

  // Frees what was consumed.
  void Reclaim(const std::function<bool(int unit, Mark until)>& consumed);
  // Owners consumed everything.
  void ReclaimAll();
  // Units whose gradients stand in some place and were not consumed.
  void ForEachAwaited(const std::function<void(int unit, Mark until)>& f) const;

 private:
  static constexpr int kNoUnit = -1;
  struct Chunk {
    char* data;
    int64_t bytes;
  };
  struct Busy {
    Place place;
    int unit;
    Mark until;
    bool borrowed;
  };
  bool IsFree(const Place& place) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<Place> Find(int unit, int64_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<Place> FirstFit(uint32_t chunk, int64_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Busy* At(const void* p) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void* Address(const Place& place) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable absl::Mutex mu_;
  std::vector<Chunk> chunks_ ABSL_GUARDED_BY(mu_);
  std::vector<Place> homes_ ABSL_GUARDED_BY(mu_);
  std::vector<Busy> busy_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::client

#endif  // SHERD_CLIENT_STAGING_PLACES_H_
