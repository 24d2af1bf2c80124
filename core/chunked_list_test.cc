#include "core/chunked_list.h"

#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace sherd {
namespace {

using List = ChunkedList<std::string>;

std::vector<std::string> All(const List& list) { return std::vector<std::string>(list.begin(), list.end()); }

TEST(ChunkedListTest, GrowsAndShrinksOverTheEndsOfChunks) {
  List list;
  std::vector<std::string> want;
  for (size_t i = 0; i < 2 * List::kChunk + 3; ++i) {
    list.push_back(std::to_string(i));
    want.push_back(std::to_string(i));
    ASSERT_EQ(list.back(), want.back());
  }
  EXPECT_EQ(All(list), want);
  while (!want.empty()) {
    list.pop_back();
    want.pop_back();
    ASSERT_EQ(list.size(), want.size());
    if (want.empty()) break;
    ASSERT_EQ(list.back(), want.back());
  }
  EXPECT_TRUE(list.empty());
  EXPECT_EQ(list.begin(), list.end());
}

TEST(ChunkedListTest, ACopySharesUntilOneOfTheTwoChanges) {
  List list;
  for (size_t i = 0; i < 2 * List::kChunk; ++i) list.push_back("old");
  const List before = list;
  EXPECT_EQ(&list[3], &before[3]);
  list.Mutable(3) = "new";
  EXPECT_EQ(list[3], "new");
  EXPECT_EQ(before[3], "old");
  EXPECT_NE(&list[4], &before[4]);
  EXPECT_EQ(&list[List::kChunk], &before[List::kChunk]);  // the other chunk is still one
  const std::string* own = &list[3];
  list.Mutable(4) = "new";
  EXPECT_EQ(&list[3], own);  // what is its own already is not copied again
}

// Against plain vectors: whatever is done to one of several copies, the others stay as they are.
TEST(ChunkedListTest, CopiesAreAsIndependentAsVectors) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  std::vector<List> lists(4);
  std::vector<std::vector<std::string>> wants(4);
  for (int round = 0; round < 20000; ++round) {
    const size_t i = rng() % 4, j = rng() % 4;
    switch (rng() % 8) {
      case 0:
        lists[i] = lists[j];
        wants[i] = wants[j];
        break;
      case 1:
      case 2:
        if (wants[i].empty()) break;
        lists[i].pop_back();
        wants[i].pop_back();
        break;
      case 3:
      case 4:
        if (wants[i].empty()) break;
        lists[i].Mutable(j * 7919 % wants[i].size()) = wants[i][j * 7919 % wants[i].size()] =
            std::to_string(round);
        break;
      default:
        lists[i].push_back(std::to_string(round));
        wants[i].push_back(std::to_string(round));
    }
    if (round % 500 != 0) continue;
    for (size_t k = 0; k < 4; ++k) ASSERT_EQ(All(lists[k]), wants[k]) << "round " << round;
  }
}

TEST(ChunkedListTest, CopiesAreReadAndDroppedElsewhere) {
  List list;
  for (size_t i = 0; i < List::kChunk; ++i) list.push_back("0");
  for (int round = 0; round < 200; ++round) {
    std::thread reader([copy = list, round] {
      for (const std::string& item : copy) EXPECT_EQ(item, std::to_string(round));
    });
    for (size_t i = 0; i < List::kChunk; ++i) list.Mutable(i) = std::to_string(round + 1);
    reader.join();
  }
}

}  // namespace
}  // namespace sherd
