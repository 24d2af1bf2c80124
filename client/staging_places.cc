#include "client/staging_places.h"

#include <algorithm>
#include <utility>

namespace sherd::client {

void StagingPlaces::AddChunk(char* data, int64_t bytes) {
  absl::MutexLock lock(&mu_);
  chunks_.push_back({data, bytes});
}

void StagingPlaces::SetHomes(std::vector<Place> homes) {
  absl::MutexLock lock(&mu_);
  homes_ = std::move(homes);
}

bool StagingPlaces::IsFree(const Place& place) const {
  return std::none_of(busy_.begin(), busy_.end(), [&](const Busy& b) {
    return b.place.chunk == place.chunk && b.place.offset < place.offset + place.bytes &&
           place.offset < b.place.offset + b.place.bytes;
  });
}

std::optional<StagingPlaces::Place> StagingPlaces::FirstFit(uint32_t chunk, int64_t bytes) const {
  std::vector<std::pair<int64_t, int64_t>> taken;
  for (const Busy& b : busy_) {
    if (b.place.chunk == chunk) taken.emplace_back(b.place.offset, b.place.offset + b.place.bytes);
  }
  std::sort(taken.begin(), taken.end());
  int64_t at = 0;
  for (const auto& [begin, end] : taken) {
    if (begin - at >= bytes) break;
    at = std::max(at, end);
  }
  if (chunks_[chunk].bytes - at < bytes) return std::nullopt;
  return Place{chunk, at, bytes};
}

std::optional<StagingPlaces::Place> StagingPlaces::Find(int unit, int64_t bytes) const {
  if (unit != kNoUnit && !homes_.empty() && IsFree(homes_[unit])) return homes_[unit];
  for (const Place& home : homes_) {
    if (home.bytes == bytes && IsFree(home)) return home;
  }
  for (uint32_t c = homes_.empty() ? 0 : 1; c < chunks_.size(); ++c) {
    if (std::optional<Place> place = FirstFit(c, bytes); place.has_value()) return place;
  }
  return std::nullopt;
}

void* StagingPlaces::Address(const Place& place) const { return chunks_[place.chunk].data + place.offset; }

StagingPlaces::Busy* StagingPlaces::At(const void* p) {
  for (Busy& b : busy_) {
    if (b.borrowed && Address(b.place) == p) return &b;
  }
  return nullptr;
}

std::optional<StagingPlaces::Place> StagingPlaces::Take(int unit, int64_t bytes, Mark until) {
  absl::MutexLock lock(&mu_);
  const std::optional<Place> place = Find(unit, bytes);
  if (place.has_value()) busy_.push_back({*place, unit, until, false});
  return place;
}

void StagingPlaces::Restore(const Place& place, int unit, Mark until) {
  absl::MutexLock lock(&mu_);
  busy_.push_back({place, unit, until, false});
}

void* StagingPlaces::Borrow(int64_t bytes) {
  absl::MutexLock lock(&mu_);
  const std::optional<Place> place = Find(kNoUnit, bytes);
  if (!place.has_value()) return nullptr;
  busy_.push_back({*place, kNoUnit, Mark(), true});
  return Address(*place);
}

std::optional<StagingPlaces::Place> StagingPlaces::Assign(const void* p, int unit, int64_t bytes,
                                                          Mark until) {
  absl::MutexLock lock(&mu_);
  Busy* b = At(p);
  if (b == nullptr || b->unit != kNoUnit || b->place.bytes != bytes) return std::nullopt;
  b->unit = unit;
  b->until = until;
  return b->place;
}

void StagingPlaces::Return(const void* p) {
  absl::MutexLock lock(&mu_);
  Busy* b = At(p);
  if (b == nullptr) return;
  b->borrowed = false;
  if (b->unit == kNoUnit) busy_.erase(busy_.begin() + (b - busy_.data()));
}

void StagingPlaces::Reclaim(const std::function<bool(int unit, Mark until)>& consumed) {
  absl::MutexLock lock(&mu_);
  for (Busy& b : busy_) {
    if (b.unit != kNoUnit && consumed(b.unit, b.until)) b.unit = kNoUnit;
  }
  busy_.erase(std::remove_if(busy_.begin(), busy_.end(),
                             [](const Busy& b) { return b.unit == kNoUnit && !b.borrowed; }),
              busy_.end());
}

void StagingPlaces::ReclaimAll() {
  Reclaim([](int, Mark) { return true; });
}

void StagingPlaces::ForEachAwaited(const std::function<void(int unit, Mark until)>& f) const {
  absl::MutexLock lock(&mu_);
  for (const Busy& b : busy_) {
    if (b.unit != kNoUnit) f(b.unit, b.until);
  }
}

}  // namespace sherd::client
