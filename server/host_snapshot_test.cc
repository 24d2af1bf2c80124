// A snapshot of a job of several hosts: each host's part in its table, and streams of what all of them hold;
// all hosts in one process.
#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/host_map.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"
#include "runtime/formats/half.h"
#include "runtime/test_root.h"
#include "server/snapshot_reader.h"
#include "server/snapshot_table.h"
#include "server/tensor_stream.h"
#include "server/test_host.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;

constexpr int kPlanes = 3;

float ValueOf(int plane, int64_t i) { return static_cast<float>(plane * 100000 + i); }

PoolOrder Order(uint64_t id, const std::string& token, int64_t blocks) {
  PoolOrder order;
  order.id = id;
  order.plane_mask = (1 << kPlanes) - 1;
  order.pool_blocks = blocks;
  order.idle_timeout = absl::Seconds(60);
  order.token = token;
  return order;
}

// One host of the job. It has what it owns, and of the others' blocks only what is none of theirs.
struct Host : TestHost {
  Host(const std::string& root, int index, int hosts) : TestHost(root, index, hosts) {
    EXPECT_TRUE(memory->BeginFirstAssignment(1, HostMap::OneHost(1)).ok());
    for (int p = 0; p < memory->planes(); ++p) {
      for (const UnitInfo& unit : memory->layout().units()) {
        const BlockRange own = HostShare(unit.blocks, index, HostGrid{hosts, hosts});
        for (int64_t b = own.begin; b < std::min(own.end, memory->plane_blocks(p)); ++b) {
          for (int64_t i = b * kBlockElements; i < (b + 1) * kBlockElements; ++i)
            memory->plane(p)[i] = ValueOf(p, i);
        }
      }
    }
  }

  // As the owners of this host would after step 0, and then go on.
  void CutAndGoOn(uint64_t id) {
    absl::StatusOr<SnapshotPool> pool = SnapshotPool::Open(*memory, id);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool->SaveAtCut(*memory, Step(0), LossScale());
    runtime::SnapshotEntry& entry = *FindSnapshot(memory->control(), id);
    entry.cut_plus_1 = 1;
    for (const UnitInfo& unit : memory->layout().units()) {
      const BlockRange own = HostShare(unit.blocks, memory->place().index, memory->grid());
      for (int64_t b = own.begin; b < own.end && b < memory->trainable_blocks(); b += 2) {
        const float* live[kPlanes];
        for (int p = 0; p < kPlanes; ++p) live[p] = memory->plane(p) + b * kBlockElements;
        ASSERT_EQ(pool->Preserve(entry, {b, b + 1}, live), 1);
        for (int p = 0; p < kPlanes; ++p) memory->plane(p)[b * kBlockElements + 3] = -7;
      }
    }
  }
};

// What a stream's other hosts send, taken from their streams at once.
class Wired final : public OtherShares {
 public:
  explicit Wired(std::vector<TensorStream>* shares) : shares_(shares), next_(shares->size(), 0) {}
  void Begin(int host, uint64_t offset) override { next_[host] = offset; }
  absl::Status Read(int host, uint64_t offset, absl::Span<char> out) override {
    in_order_ &= next_[host] == offset;
    next_[host] = offset + out.size();
    return (*shares_)[host].Fill(offset, out);
  }
  absl::Status KeepAlive() override { return absl::OkStatus(); }
  bool in_order() const { return in_order_; }

 private:
  std::vector<TensorStream>* const shares_;
  std::vector<uint64_t> next_;
  bool in_order_ = true;
};

class HostSnapshotTest : public ::testing::TestWithParam<int> {
 protected:
  HostSnapshotTest() {
    for (int h = 0; h < GetParam(); ++h)
      hosts_.push_back(std::make_unique<Host>(root_.path(), h, GetParam()));
  }

  struct Wish {
    const char *name, *plane;
    Slice slice;
    DType dtype;
  };
  static std::vector<Wish> Wishes() {
    const Slice w = Slice::Whole({60, 50});
    return {{"w", "param", w, DType::kFloat32},
            {"scalar", "param", Slice::Whole({}), DType::kBFloat16},
            {"w", "exp_avg", *Slice::Create({60, 50}, {{1, 60, 7}, {2, 49, 3}}), DType::kFloat32},
            {"b", "step", Slice::Whole({}), DType::kFloat32},
            {"empty", "param", Slice::Whole({0, 3}), DType::kFloat32},
            {"v", "param", Slice::Whole({11, 13, 17}), DType::kBFloat16},
            {"v", "exp_avg_sq", *Slice::Create({11, 13, 17}, {{0, 11, 1}, {12, 13, 1}, {0, 17, 16}}),
             DType::kFloat32},
            {"b", "exp_avg", Slice::Whole({7}), DType::kFloat32},
            {"frozen", "param", Slice::Whole({900}), DType::kFloat32}};
  }
  static void AddAll(const JobMemory& memory, TensorStream* stream, bool planes_alone) {
    for (const Wish& wish : Wishes()) {
      const absl::StatusOr<ValueRef> values = FindValues(memory, wish.name, wish.plane);
      ASSERT_TRUE(values.ok()) << values.status();
      if (planes_alone && values->kind != ValueRef::kPlane) continue;
      ASSERT_TRUE(stream->Add(*values, wish.slice, wish.dtype).ok());
    }
  }
  std::string Expected() const {
    std::string bytes;
    for (const Wish& wish : Wishes()) {
      const absl::StatusOr<ValueRef> values = FindValues(*hosts_[0]->memory, wish.name, wish.plane);
      const int64_t first = values->tensor->blocks.begin * kBlockElements;
      wish.slice.ForEachRun(0, wish.slice.numel(), [&](int64_t at, int64_t count, int64_t stride) {
        for (int64_t i = 0; i < count; ++i) {
          const float v =
              values->kind == ValueRef::kPlane ? ValueOf(values->plane, first + at + i * stride) : 0;
          const uint16_t half = formats::Bf16FromFloat(v);
          const bool whole = wish.dtype == DType::kFloat32;
          bytes.append(whole ? reinterpret_cast<const char*>(&v) : reinterpret_cast<const char*>(&half),
                       SizeOf(wish.dtype));
        }
      });
    }
    return bytes;
  }

  runtime::TestRoot root_{"/dev/shm"};
  std::vector<std::unique_ptr<Host>> hosts_;
};

TEST_P(HostSnapshotTest, AStreamAskedOfAnyHostIsThatOfAll) {
  const std::string expected = Expected();
  for (const std::unique_ptr<Host>& host : hosts_) {
    ASSERT_TRUE(OpenPool(*host->memory, Order(1, "pull", host->memory->layout().total_blocks())).ok());
    host->CutAndGoOn(1);
  }
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 rng(seed);
  std::vector<std::shared_ptr<SnapshotReader>> readers;
  std::vector<TensorStream> shares;
  uint64_t sum = 0;
  for (const std::unique_ptr<Host>& host : hosts_) {
    absl::StatusOr<std::shared_ptr<SnapshotReader>> reader = SnapshotReader::Open(host->memory.get(), 1);
    ASSERT_TRUE(reader.ok()) << reader.status();
    readers.push_back(*std::move(reader));
    shares.push_back(TensorStream::OwnShare(host->memory.get(), readers.back().get()));
    AddAll(*host->memory, &shares.back(), /*planes_alone=*/true);
    EXPECT_GT(shares.back().bytes(), 0u);
    sum += shares.back().bytes();
  }
  EXPECT_EQ(sum + 4, expected.size());  // and the count of updates
  for (size_t h = 0; h < hosts_.size(); ++h) {
    for (int round = 0; round < 100; ++round) {
      Wired wired(&shares);
      TensorStream stream(hosts_[h]->memory.get(), readers[h].get(), &wired);
      AddAll(*hosts_[h]->memory, &stream, false);
      ASSERT_EQ(stream.bytes(), expected.size());
      // From some byte on, in pieces of any size.
      const uint64_t begin = round == 0 ? 0 : rng() % expected.size();
      std::string got;
      while (begin + got.size() < expected.size()) {
        std::string piece(std::min<uint64_t>(1 + rng() % 3000, expected.size() - begin - got.size()), '?');
        ASSERT_TRUE(stream.Fill(begin + got.size(), absl::MakeSpan(&piece[0], piece.size())).ok());
        got += piece;
      }
      ASSERT_TRUE(got == expected.substr(begin)) << "host " << h << " from " << begin;
      EXPECT_TRUE(wired.in_order());
    }
  }
}

TEST_P(HostSnapshotTest, WhatADeadCoordinatorOrderedIsReplacedAndWhatWasProposedIsNot) {
  JobMemory& memory = *hosts_.back()->memory;
  ASSERT_TRUE(OpenPool(memory, Order(4, "first", 8)).ok());
  ASSERT_TRUE(OpenPool(memory, Order(4, "first", 8)).ok());
  EXPECT_EQ(FindByToken(memory.control(), "first"), 4u);
  ASSERT_TRUE(OpenPool(memory, Order(4, "second", 9)).ok());
  EXPECT_EQ(FindByToken(memory.control(), "first"), 0u);
  EXPECT_EQ(FindByToken(memory.control(), "second"), 4u);
  EXPECT_EQ(FindSnapshot(memory.control(), 4)->pool_blocks, 9u);
  memory.control().proposals.snapshot = 4;
  // It may be cut by now: a late call must not take it away.
  EXPECT_EQ(OpenPool(memory, Order(4, "first", 8)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(OpenPool(memory, Order(4, "second", 9)).ok());
  EXPECT_EQ(FindByToken(memory.control(), "second"), 4u);
}

TEST_P(HostSnapshotTest, ACutIsAwaitedAndKeepsFromExpiring) {
  JobMemory& memory = *hosts_.back()->memory;
  const auto never = [] { return absl::CancelledError("asked"); };
  EXPECT_EQ(AwaitCut(memory, 3, runtime::SteadyNow(), never).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(OpenPool(memory, Order(3, "t", memory.layout().total_blocks())).ok());
  runtime::SnapshotEntry& entry = *FindSnapshot(memory.control(), 3);
  EXPECT_EQ(AwaitCut(memory, 3, absl::InfiniteFuture(), never).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(AwaitCut(memory, 3, runtime::SteadyNow(), [] { return absl::OkStatus(); }).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  entry.cut_plus_1 = 2;  // of a step that is not stored everywhere
  EXPECT_EQ(AwaitCut(memory, 3, absl::InfiniteFuture(), never).status().code(), absl::StatusCode::kCancelled);
  entry.cut_plus_1 = 1;
  entry.expires_ns = 0;
  const absl::StatusOr<Step> cut = AwaitCut(memory, 3, absl::InfiniteFuture(), never);
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(*cut, Step(0));
  SweepPools(memory);
  EXPECT_NE(FindSnapshot(memory.control(), 3), nullptr);
  entry.expires_ns = 0;
  SweepPools(memory);
  EXPECT_EQ(FindSnapshot(memory.control(), 3), nullptr);
  EXPECT_EQ(SnapshotPool::Open(memory, 3).status().code(), absl::StatusCode::kNotFound);
}

INSTANTIATE_TEST_SUITE_P(Hosts, HostSnapshotTest, ::testing::Values(1, 2, 3));

}  // namespace
}  // namespace sherd::server
