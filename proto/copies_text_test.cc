#include "proto/copies_text.h"

#include "gtest/gtest.h"

namespace sherd {
namespace {

v1::CompareCopiesResponse::Difference Make(const char* plane, int64_t begin, int64_t end,
                                           std::initializer_list<int> hosts,
                                           std::initializer_list<int> apart) {
  v1::CompareCopiesResponse::Difference d;
  d.mutable_tensor()->set_name("h.0.w");
  d.mutable_tensor()->set_plane(plane);
  d.set_begin(begin);
  d.set_end(end);
  for (int h : hosts) d.add_hosts(h);
  for (int h : apart) d.add_apart(h);
  return d;
}

TEST(CopiesTextTest, SaysWhereAndWhose) {
  EXPECT_EQ(Describe(Make("param", 5, 6, {0, 1, 2}, {1})), "h.0.w param[5]: host 1 differs from hosts 0, 2");
  EXPECT_EQ(Describe(Make("exp_avg", 0, 9, {0, 1, 2, 3, 4}, {1, 4})),
            "h.0.w exp_avg[0:9]: hosts 1, 4 differ from hosts 0, 2, 3");
  EXPECT_EQ(Describe(Make("step", 0, 0, {1, 3}, {1, 3})),
            "h.0.w step: hosts 1, 3 differ, and no more than half of them agree");
}

}  // namespace
}  // namespace sherd
