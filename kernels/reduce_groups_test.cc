#include "kernels/reduce_groups.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/convert.h"
#include "kernels/half.h"
#include "kernels/simd_targets_for_test.h"
#include "kernels/test_data.h"

namespace sherd {
namespace kernels {
namespace {

constexpr int64_t kBlocks = 3;
constexpr int64_t kElements = kBlocks * kBlockElements;
constexpr DType kTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

// Sources of one world, as a tree of groups of consecutive ones.
struct World {
  World(const std::vector<int>& sizes, DType dtype, bool special, uint64_t seed)
      : World(sizes, dtype, special, std::mt19937_64(seed)) {}
  World(const std::vector<int>& sizes, DType dtype, bool special, std::mt19937_64 random)
      : out(RandomFloats(kElements, random, special)) {
    int k = 0;
    data.reserve(std::accumulate(sizes.begin(), sizes.end(), 0));  // the sources point into it
    for (const int size : sizes) {
      std::vector<Source>& group = sources.emplace_back();
      for (int i = 0; i < size; ++i, ++k) {
        data.emplace_back(kElements);
        FromFloat(RandomFloats(kElements, random, special).data(), kElements, dtype, data.back().data());
        group.push_back({data.back().data(), 0.3f * (k + 1), dtype});
      }
    }
  }
  std::vector<SourceGroup> Groups() const {
    std::vector<SourceGroup> groups;
    for (const std::vector<Source>& g : sources) groups.push_back({g.data(), static_cast<int>(g.size())});
    return groups;
  }
  std::vector<Floats> data;
  std::vector<std::vector<Source>> sources;
  Floats out;
};

struct Result {
  Floats out{kElements};
  Doubles sumsq{kBlocks};
};

Result Reduced(decltype(&ReduceGroups) reduce, const World& w, DType wire, bool accumulate, bool stream) {
  Result r{w.out};
  const std::vector<SourceGroup> groups = w.Groups();
  reduce(groups.data(), static_cast<int>(groups.size()), wire, accumulate, r.out.data(), kBlocks,
         r.sumsq.data(), stream);
  return r;
}

TEST(ReduceGroups, EveryInstructionSetGivesTheBitsOfThePlainLoop) {
  const std::vector<std::vector<int>> trees = {{}, {0}, {1}, {1, 1}, {2, 2}, {3, 0, 1}, {2, 1, 3}};
  uint64_t seed = 20261123;
  int targets = 0;
  for (const std::vector<int>& tree : trees) {
    for (const DType dtype : kTypes) {
      for (const DType wire : kTypes) {
        for (int flags = 0; flags < 8; ++flags) {
          const bool accumulate = (flags & 1) != 0, stream = (flags & 2) != 0, special = (flags & 4) != 0;
          if (accumulate && stream) continue;
          World w(tree, dtype, special, ++seed);
          SCOPED_TRACE(::testing::Message()
                       << "groups " << tree.size() << " dtype " << static_cast<int>(dtype) << " wire "
                       << static_cast<int>(wire) << " flags " << flags << " seed " << seed);
          if (!w.sources.empty() && w.sources[0].size() > 1) w.sources[0][0].data = nullptr;
          const Result want = Reduced(&ReduceGroupsScalar, w, wire, accumulate, stream);
          targets = ForEachSimdTarget([&] {
            const Result got = Reduced(&ReduceGroups, w, wire, accumulate, stream);
            ASSERT_TRUE(SameBits(got.out.data(), want.out.data(), kElements));
            ASSERT_TRUE(SameBits(got.sumsq.data(), want.sumsq.data(), kBlocks));
          });
        }
      }
    }
  }
  EXPECT_GE(targets, 1);
}

// What several hosts do: each in turn takes one group inline and the others as partial sums. Same bits.
TEST(ReduceGroups, PartialSumsStandForTheirGroups) {
  uint64_t seed = 7;
  for (const DType dtype : kTypes) {
    for (const DType wire : kTypes) {
      for (const bool special : {false, true}) {
        const World w({2, 1, 3}, dtype, special, ++seed);
        const Result want = Reduced(&ReduceGroups, w, wire, false, true);
        ForEachSimdTarget([&] {
          std::vector<Floats> inbox;
          inbox.reserve(w.sources.size());
          std::vector<Source> partial;
          for (const std::vector<Source>& g : w.sources) {
            Floats scalar(kElements);
            inbox.emplace_back(kElements);
            ReducePartial(g.data(), static_cast<int>(g.size()), wire, inbox.back().data(), kBlocks);
            ReducePartialScalar(g.data(), static_cast<int>(g.size()), wire, scalar.data(), kBlocks);
            Floats a(kElements), b(kElements);
            ToFloat(wire, inbox.back().data(), kElements, a.data());
            ToFloat(wire, scalar.data(), kElements, b.data());
            ASSERT_TRUE(SameBits(a.data(), b.data(), kElements));
            partial.push_back({inbox.back().data(), 1, wire});
          }
          for (size_t host = 0; host < w.sources.size(); ++host) {
            std::vector<SourceGroup> groups = w.Groups();
            for (size_t g = 0; g < groups.size(); ++g) {
              if (g != host) groups[g] = {&partial[g], 1};
            }
            Result got;
            ReduceGroups(groups.data(), 3, wire, false, got.out.data(), kBlocks, got.sumsq.data(), false);
            ASSERT_TRUE(SameBits(got.out.data(), want.out.data(), kElements));
            ASSERT_TRUE(SameBits(got.sumsq.data(), want.sumsq.data(), kBlocks));
          }
        });
      }
    }
  }
}

TEST(ReduceGroups, OneGroupInFp32IsTheSumWithoutGroups) {
  const World w({4}, DType::kBFloat16, true, 3);
  const Result got = Reduced(&ReduceGroups, w, DType::kFloat32, true, false);
  Result want{w.out};
  ReduceBlocks(w.sources[0].data(), 4, true, want.out.data(), kBlocks, want.sumsq.data(), false);
  EXPECT_TRUE(SameBits(got.out.data(), want.out.data(), kElements));
  EXPECT_TRUE(SameBits(got.sumsq.data(), want.sumsq.data(), kBlocks));
}

TEST(ReduceGroups, RoundsEachGroupAndFlagsItsOverflow) {
  Floats one(kElements), tiny(kElements), huge(kElements);
  for (int64_t i = 0; i < kElements; ++i) one[i] = 1, tiny[i] = 1.0f / 512, huge[i] = 70000;
  const Source a[] = {{one.data(), 1}, {tiny.data(), 1}}, b[] = {{tiny.data(), 1}}, c[] = {{huge.data(), 1}};
  const SourceGroup groups[] = {{a, 2}, {b, 1}, {c, 1}};
  Result r;
  ReduceGroups(groups, 2, DType::kBFloat16, false, r.out.data(), kBlocks, r.sumsq.data(), false);
  EXPECT_EQ(r.out[5], 1 + 1.0f / 512) << "1 + 1/512 is 1 in bf16; the other group's 1/512 is added in fp32";
  EXPECT_TRUE(std::isfinite(r.sumsq[0]));
  ReduceGroups(groups, 3, DType::kFloat16, false, r.out.data(), kBlocks, r.sumsq.data(), false);
  EXPECT_FALSE(std::isfinite(r.sumsq[0])) << "70000 is infinite in fp16";
}

TEST(ReduceGroups, StopsAtBrokenContracts) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  Floats x(kElements), out(kElements);
  Doubles sumsq(kBlocks);
  const Source mixed[] = {{x.data(), 1}, {x.data(), 1, DType::kBFloat16}}, none[] = {{nullptr, 1}};
  const SourceGroup group = {mixed, 2};
  EXPECT_DEATH(ReduceGroups(&group, 1, DType::kFloat32, false, out.data(), 1, sumsq.data(), false),
               "one dtype");
  EXPECT_DEATH(ReduceGroups(&group, 0, DType::kFloat32, true, out.data(), 1, sumsq.data(), true),
               "accumulate");
  EXPECT_DEATH(ReducePartial(none, 1, DType::kFloat32, out.data(), 1), "no source");
  EXPECT_DEATH(ReducePartial(mixed, 1, DType::kFloat32, out.data() + 1, 1), "aligned");
}

}  // namespace
}  // namespace kernels
}  // namespace sherd
