#include "client/staging_places.h"

#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace sherd::client {
namespace {

Mark Until(uint64_t step) { return Mark::Of({Step(step), 0}, 1); }

std::set<int> Awaited(const StagingPlaces& places) {
  std::set<int> units;
  places.ForEachAwaited([&](int unit, Mark) { units.insert(unit); });
  return units;
}

TEST(StagingPlacesTest, UnitsHaveHomesAndMayStandInOnesOfTheirSize) {
  std::vector<char> memory(400);
  StagingPlaces places;
  places.AddChunk(memory.data(), 400);
  places.SetHomes({{0, 0, 100}, {0, 100, 100}, {0, 200, 200}});
  // Borrowed: the first of that size.
  void* p = places.Borrow(100);
  EXPECT_EQ(reinterpret_cast<char*>(p), memory.data());
  // Unit 0 goes to the other one; then there is no more, whatever is free of another size.
  EXPECT_EQ(places.Take(0, 100, Until(1))->offset, 100);
  EXPECT_FALSE(places.Take(1, 100, Until(1)).has_value());
  EXPECT_EQ(places.Borrow(100), nullptr);
  EXPECT_EQ(places.Borrow(50), nullptr);
  // What is borrowed turns out to be unit 1.
  EXPECT_EQ(places.Assign(p, 1, 100, Until(1))->offset, 0);
  EXPECT_FALSE(places.Assign(p, 1, 100, Until(1)).has_value());
  places.Return(p);
  EXPECT_EQ(places.Borrow(100), nullptr) << "unit 1 has not been consumed";
  EXPECT_EQ(Awaited(places), (std::set<int>{0, 1}));
  places.Reclaim([](int unit, Mark) { return unit == 1; });
  EXPECT_EQ(places.Borrow(100), p);
}

TEST(StagingPlacesTest, FreeOnlyOnceReturnedAndConsumed) {
  std::vector<char> memory(100);
  StagingPlaces places;
  places.AddChunk(memory.data(), 100);
  void* p = places.Borrow(100);
  ASSERT_TRUE(places.Assign(p, 3, 100, Until(2)).has_value());
  places.ReclaimAll();
  EXPECT_TRUE(Awaited(places).empty());
  EXPECT_EQ(places.Borrow(100), nullptr) << "still held";
  places.Return(p);
  EXPECT_EQ(places.Borrow(100), p);
  places.Return(p);
  EXPECT_EQ(places.Borrow(100), p);
}

TEST(StagingPlacesTest, RingPlacesAreFoundInGapsAndInLaterChunks) {
  std::vector<char> memory(300), more(100);
  StagingPlaces places;
  places.AddChunk(memory.data(), 300);
  EXPECT_EQ(places.Take(0, 128, Until(1))->offset, 0);
  EXPECT_EQ(places.Take(1, 64, Until(1))->offset, 128);
  EXPECT_EQ(places.Take(2, 64, Until(1))->offset, 192);
  EXPECT_FALSE(places.Take(3, 64, Until(1)).has_value());
  places.Reclaim([](int unit, Mark) { return unit == 1; });
  EXPECT_EQ(places.Take(4, 64, Until(1))->offset, 128);
  places.AddChunk(more.data(), 100);
  EXPECT_EQ(places.Take(3, 64, Until(1))->chunk, 1u);
}

TEST(StagingPlacesTest, APlaceThatAPredecessorLeftIsInUse) {
  std::vector<char> memory(200);
  StagingPlaces places;
  places.AddChunk(memory.data(), 200);
  places.SetHomes({{0, 0, 100}, {0, 100, 100}});
  places.Restore({0, 100, 100}, 0, Until(5));
  EXPECT_EQ(places.Take(1, 100, Until(5))->offset, 0);
  EXPECT_EQ(places.Borrow(100), nullptr);
}

}  // namespace
}  // namespace sherd::client
