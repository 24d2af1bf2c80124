#include "client/cli/text.h"

#include "gtest/gtest.h"

namespace sherd::cli {
namespace {

TEST(Text, HumanBytes) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes((1 << 20) - 1), "1.0 MiB");
  EXPECT_EQ(HumanBytes(uint64_t{5} << 30), "5.0 GiB");
  EXPECT_EQ(HumanBytes(~uint64_t{0}), "16.0 EiB");
}

TEST(Text, ParseBytes) {
  EXPECT_EQ(*ParseBytes("0"), 0);
  EXPECT_EQ(*ParseBytes("1048576"), 1048576);
  EXPECT_EQ(*ParseBytes("64K"), 65536);
  EXPECT_EQ(*ParseBytes("1.5m"), 1572864);
  EXPECT_EQ(*ParseBytes("2GiB"), uint64_t{2} << 30);
  EXPECT_EQ(*ParseBytes("3TB"), uint64_t{3} << 40);
  EXPECT_EQ(*ParseBytes("7b"), 7);
  for (const char* bad : {"", "K", "-1", "+1", "1Q", "1KK", "nan", "inf", "1e30", "1 M x", "99999999T"}) {
    EXPECT_FALSE(ParseBytes(bad).ok()) << bad;
  }
}

TEST(Text, ParseTimeout) {
  EXPECT_EQ(*ParseTimeout("90"), absl::Seconds(90));
  EXPECT_EQ(*ParseTimeout("1.5"), absl::Milliseconds(1500));
  EXPECT_EQ(*ParseTimeout("500ms"), absl::Milliseconds(500));
  EXPECT_EQ(*ParseTimeout("2m"), absl::Minutes(2));
  EXPECT_EQ(*ParseTimeout("inf"), absl::InfiniteDuration());
  for (const char* bad : {"", "0", "-1", "x", "nan", "-3s", "5 apples"})
    EXPECT_FALSE(ParseTimeout(bad).ok()) << bad;
}

TEST(Text, Counts) {
  EXPECT_EQ(*ParseCount("123456"), 123456);
  EXPECT_EQ(*ParseCount("7.5B"), 7500000000);
  EXPECT_EQ(*ParseCount("7.3b"), 7300000000);
  EXPECT_EQ(*ParseCount("350M"), 350000000);
  EXPECT_EQ(*ParseCount("1.3T"), 1300000000000);
  EXPECT_EQ(*ParseCount("64k"), 64000);
  EXPECT_EQ(*ParseCount("1e9"), 1000000000);
  for (const char* bad : {"", "B", "-1", "0", "1.5", "x", "1G", "inf", "nan", "1e300", "1 B", "7B5"}) {
    EXPECT_FALSE(ParseCount(bad).ok()) << bad;
  }
}

TEST(Text, DecimalBytes) {
  EXPECT_EQ(DecimalBytes(0), "0 B");
  EXPECT_EQ(DecimalBytes(999), "999 B");
  EXPECT_EQ(DecimalBytes(1500), "1.5 KB");
  EXPECT_EQ(DecimalBytes(120e9), "120 GB");
  EXPECT_EQ(DecimalBytes(16640625000), "16.6 GB");
  EXPECT_EQ(DecimalBytes(999960000), "1 GB");
}

TEST(Text, Tables) {
  Table table({"NAME", "SHAPE"});
  table.Add({"a", ShapeText({2, 3})});
  table.Add({"longer", ShapeText({})});
  EXPECT_EQ(table.ToString(), "NAME    SHAPE\na       2x3\nlonger  scalar\n");
}

}  // namespace
}  // namespace sherd::cli
