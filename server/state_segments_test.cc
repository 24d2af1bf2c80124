// The segments beside a job's planes, both sides in one process: a snapshot's pool under mutation, streams of
// it from any offset, imports.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <string>
#include <thread>

#include "grpcpp/impl/codegen/proto_utils.h"
#include "gtest/gtest.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "runtime/clock.h"
#include "runtime/crc32c.h"
#include "runtime/formats/half.h"
#include "runtime/test_root.h"
#include "server/import_segment.h"
#include "server/live_sends.h"
#include "server/snapshot_pool.h"
#include "server/snapshot_reader.h"
#include "server/tensor_stream.h"

namespace sherd::server {
namespace {

using runtime::JobDir;
using runtime::JobMemory;

class StateSegmentsTest : public ::testing::Test {
 protected:
  StateSegmentsTest() : dir_(*JobDir::Create(root_.path(), "t")) {
    JobSpec spec;
    spec.job = "t";
    spec.layout = *Layout::Create({{{"w", {30, 50}}, {"b", {7}}, {"empty", {0, 3}}, {"scalar", {}}},
                                   {{"frozen", {300}, DType::kFloat32, 0, false}}});
    spec.groups = {""};
    spec.world_size = 1;
    spec.buffers = {{"mean", {3}, "F32"}, {"count", {}, "I64"}, {"flags", {5}, "U8"}};
    auto made = JobMemory::Create(&dir_, spec);
    EXPECT_TRUE(made.ok()) << made.status();
    memory_ = *std::move(made);
    runtime::ControlPage& c = memory_->control();
    c.PutAssignment(1, HostMap::OneHost(1), 1);
    c.Activate(1, Step(1));
    for (int p = 0; p < memory_->planes(); ++p) {
      for (int64_t i = 0; i < memory_->plane_blocks(p) * kBlockElements; ++i)
        memory_->plane(p)[i] = ValueOf(p, i);
    }
    for (size_t t = 0; t < memory_->layout().tensors().size(); ++t)
      memory_->tensor_steps(Step(0))[t] = 10 + t;
    for (int64_t i = 0; i < runtime::BufferArea(memory_->spec()); ++i)
      buffers_.push_back(static_cast<char>('A' + i));
    std::copy(buffers_.begin(), buffers_.end(), memory_->rank(Rank(0)).buffers(Step(0)).data());
  }

  static float ValueOf(int plane, int64_t i) { return static_cast<float>(plane * 100000 + i); }

  // Opens a snapshot of everything, cut after step 0, as coordinator and owner together would.
  runtime::SnapshotEntry& Cut(uint64_t id, int64_t pool_blocks, uint64_t mask = 7) {
    runtime::SnapshotEntry& e = memory_->control().snapshots[id % runtime::ControlPage::kSnapshots];
    auto pool = SnapshotPool::Create(*memory_, id, mask, pool_blocks);
    EXPECT_TRUE(pool.ok()) << pool.status();
    pool_ = std::make_unique<SnapshotPool>(*std::move(pool));
    e.idle_ns = 1000000000;
    e.id = id;
    pool_->SaveAtCut(*memory_, Step(0), loss_scale_);
    e.cut_plus_1 = 1;
    return e;
  }

  // What an owner does to a block in a later step.
  bool Mutate(runtime::SnapshotEntry& e, int64_t block, float add) {
    const float* live[3] = {};
    for (int p = 0; p < memory_->planes(); ++p) {
      if (block < memory_->plane_blocks(p)) live[p] = memory_->plane(p) + block * kBlockElements;
    }
    if (pool_->Preserve(e, {block, block + 1}, live) != 1) return false;
    for (int p = 0; p < memory_->planes(); ++p) {
      if (live[p] == nullptr) continue;
      for (int64_t i = 0; i < kBlockElements; ++i) memory_->plane(p)[block * kBlockElements + i] += add;
    }
    return true;
  }

  void ReadWhileBlocksChange(int64_t fewer);

  const TensorInfo& Tensor(const char* name) { return *memory_->layout().Find(name); }

  runtime::TestRoot root_{"/dev/shm"};
  JobDir dir_;
  std::unique_ptr<JobMemory> memory_;
  std::unique_ptr<SnapshotPool> pool_;
  std::string buffers_;
  LossScale loss_scale_;
};

// With a place for every block, and with places in order.
TEST_F(StateSegmentsTest, ReaderSeesTheCutWhileBlocksChange) { ReadWhileBlocksChange(0); }
TEST_F(StateSegmentsTest, ReaderSeesTheCutInASmallerPool) { ReadWhileBlocksChange(1); }

void StateSegmentsTest::ReadWhileBlocksChange(int64_t fewer) {
  runtime::SnapshotEntry& e = Cut(5, memory_->layout().total_blocks() - fewer);
  EXPECT_TRUE(pool_->Populate({0, memory_->layout().total_blocks()}, nullptr).ok());
  auto reader = SnapshotReader::Open(memory_.get(), 5);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->step(), Step(0));
  std::atomic<bool> stop{false};
  std::thread owner([&] {
    for (int64_t round = 0; round < 200; ++round) {
      for (int64_t b = 0; b < memory_->trainable_blocks(); ++b) EXPECT_TRUE(Mutate(e, b, 0.5f));
    }
    stop = true;
  });
  const TensorInfo& w = Tensor("w");
  std::vector<float> out(w.numel);
  do {
    for (int p = 0; p < 3; ++p) {
      (*reader)->Read(w, p, 0, w.numel, reinterpret_cast<char*>(out.data()));
      ASSERT_TRUE((*reader)->Check().ok());
      for (int64_t i = 0; i < w.numel; ++i) ASSERT_EQ(out[i], ValueOf(p, i)) << p << " " << i;
    }
  } while (!stop);
  owner.join();
  EXPECT_EQ(e.used, memory_->trainable_blocks());
}

TEST_F(StateSegmentsTest, WhatTrainersCommittedIsKeptForASave) {
  TrainerStep record;
  loss_scale_.scale = 512, loss_scale_.i = 7;
  record.groups = {GroupScalars{}};
  record.groups[0][kLr] = 0.25;
  ASSERT_TRUE(memory_->rank(Rank(0)).PublishStep(record, "sampler and generator").ok());
  Cut(5, 8, 7 | SnapshotPool::kTrainerState);
  auto reader = SnapshotReader::Open(memory_.get(), 5);
  ASSERT_TRUE(reader.ok()) << reader.status();
  record.id = StepId{Step(2), 0};
  ASSERT_TRUE(memory_->rank(Rank(0)).PublishStep(record, "two steps later").ok());
  EXPECT_EQ((*reader)->pool().blob(Rank(0)), "sampler and generator");
  ASSERT_EQ((*reader)->pool().groups().size(), 1u);
  EXPECT_EQ((*reader)->pool().groups()[0][kLr], 0.25);
  EXPECT_EQ((*reader)->pool().loss_scale(), loss_scale_);
  EXPECT_TRUE((*reader)->HasPlane(2));
}

TEST_F(StateSegmentsTest, OverflowAndReleaseAreSeenByTheReader) {
  runtime::SnapshotEntry& e = Cut(6, 1);
  auto reader = SnapshotReader::Open(memory_.get(), 6);
  ASSERT_TRUE(reader.ok());
  e.overflowed = 1;
  EXPECT_EQ((*reader)->Check().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(SnapshotReader::Open(memory_.get(), 6).status().code(), absl::StatusCode::kResourceExhausted);
  e.id = 0;
  EXPECT_EQ((*reader)->Check().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(SnapshotReader::Open(memory_.get(), 6).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(StateSegmentsTest, ReadingPutsTheExpiryOff) {
  runtime::SnapshotEntry& e = Cut(7, 1);
  auto reader = SnapshotReader::Open(memory_.get(), 7);
  ASSERT_TRUE(reader.ok());
  e.expires_ns = 0;
  ASSERT_TRUE((*reader)->Check().ok());
  EXPECT_GE(e.expires_ns, runtime::MonotonicNanos());
}

TEST_F(StateSegmentsTest, ASuccessorFindsThePoolByItsId) {
  runtime::SnapshotEntry& e = Cut(8, 100, 1);
  EXPECT_TRUE(Mutate(e, 0, 1));
  auto again = SnapshotPool::Open(*memory_, 8);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->plane_mask(), 1);
  const float* live[3] = {memory_->plane(0), memory_->plane(1), memory_->plane(2)};
  EXPECT_EQ(again->Preserve(e, {0, 1}, live), 1);  // kept already: the mutated block must not take its place
  float first;
  again->Read(0, memory_->plane(0), 0, 1, reinterpret_cast<char*>(&first));
  EXPECT_EQ(first, ValueOf(0, 0));
  ASSERT_TRUE(SnapshotPool::Remove(dir_, 8).ok());
  ASSERT_TRUE(SnapshotPool::Remove(dir_, 8).ok());
  EXPECT_EQ(SnapshotPool::Open(*memory_, 8).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(StateSegmentsTest, BlocksAreKeptInRunsAndThoseThatAreKeptStay) {
  const int64_t blocks = memory_->trainable_blocks();
  ASSERT_GE(blocks, 4);
  for (const int64_t room : {memory_->layout().total_blocks(), blocks - 1}) {
    SCOPED_TRACE(room);
    runtime::SnapshotEntry& e = Cut(10 + room, room);
    const float* live[3] = {memory_->plane(0), memory_->plane(1), memory_->plane(2)};
    const float* from_2[3];
    for (int p = 0; p < 3; ++p) from_2[p] = live[p] + 2 * kBlockElements;
    ASSERT_EQ(pool_->Preserve(e, {2, 3}, from_2), 1);
    std::vector<float> before(memory_->plane(1), memory_->plane(1) + blocks * kBlockElements);
    memory_->plane(1)[2 * kBlockElements] = -1;
    ASSERT_EQ(pool_->Preserve(e, {0, blocks}, live), blocks);
    for (int64_t b = 0; b < blocks; ++b) memory_->plane(1)[b * kBlockElements + 7] = -2;
    std::vector<float> out(before.size());
    pool_->Read(1, memory_->plane(1), 0, static_cast<int64_t>(out.size()),
                reinterpret_cast<char*>(out.data()));
    EXPECT_EQ(out, before);
    EXPECT_EQ(e.used, blocks);
    std::copy(before.begin(), before.end(), memory_->plane(1));
  }
}

TEST_F(StateSegmentsTest, StreamIsTheSameFromEveryOffset) {
  runtime::SnapshotEntry& e = Cut(9, 100);
  for (int64_t b = 0; b < memory_->trainable_blocks(); b += 2) ASSERT_TRUE(Mutate(e, b, 3));
  auto reader = SnapshotReader::Open(memory_.get(), 9);
  ASSERT_TRUE(reader.ok());
  TensorStream stream(memory_.get(), reader->get());
  std::string expected;
  const auto append = [&](const void* p, size_t n) { expected.append(static_cast<const char*>(p), n); };
  const struct {
    const char *name, *plane;
  } items[] = {{"b", "param"},   {"count", "buffer"}, {"empty", "param"},
               {"w", "exp_avg"}, {"scalar", "step"},  {"flags", "buffer"},
               {"w", "param"},   {"frozen", "param"}, {"scalar", "param"}};
  for (const auto& item : items) {
    auto values = FindValues(*memory_, item.name, item.plane);
    ASSERT_TRUE(values.ok()) << values.status();
    // Half precision for param, as Pull does.
    const bool half = absl::string_view(item.plane) == "param";
    ASSERT_TRUE(stream.Add(*values, half ? DType::kBFloat16 : DType::kFloat32).ok());
    if (values->kind == ValueRef::kUpdateCount) {
      const float updates = 10 + values->tensor->index;
      append(&updates, 4);
    } else if (values->kind == ValueRef::kBuffer) {
      append(buffers_.data() + values->buffer_offset, absl::string_view(item.name) == "count" ? 8 : 5);
    } else {
      for (int64_t i = 0; i < values->tensor->numel; ++i) {
        const float v = ValueOf(values->plane, values->tensor->blocks.begin * kBlockElements + i);
        const uint16_t h = formats::Bf16FromFloat(v);
        half ? append(&h, 2) : append(&v, 4);
      }
    }
  }
  ASSERT_EQ(stream.bytes(), expected.size());
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 rng(seed);
  for (int round = 0; round < 500; ++round) {
    const uint64_t begin = round == 0 ? 0 : rng() % (expected.size() + 1);
    const uint64_t size = round == 0 ? expected.size() : rng() % (expected.size() - begin + 1);
    std::string out(size, '?');
    ASSERT_TRUE(stream.Fill(begin, absl::MakeSpan(&out[0], out.size())).ok());
    ASSERT_TRUE(out == expected.substr(begin, size)) << begin << " " << size;
  }
}

TEST_F(StateSegmentsTest, ValuesAreSentFromWhereTheyLieOnlyWhileTheyAreOfTheCut) {
  runtime::SnapshotEntry& e = Cut(11, 100);
  auto reader = SnapshotReader::Open(memory_.get(), 11);
  ASSERT_TRUE(reader.ok());
  TensorStream stream(memory_.get(), reader->get());
  ASSERT_TRUE(stream.Add(*FindValues(*memory_, "w", "exp_avg"), DType::kFloat32).ok());
  ASSERT_TRUE(stream.Add(*FindValues(*memory_, "w", "param"), DType::kBFloat16).ok());
  ASSERT_TRUE(stream.Add(*FindValues(*memory_, "mean", "buffer"), DType::kFloat32).ok());
  const uint64_t w = Tensor("w").numel * 4;
  EXPECT_EQ(stream.FindLive(0, w + 4).data, nullptr) << "two tensors do not lie in a row";
  EXPECT_EQ(stream.FindLive(2, 4).data, nullptr) << "a cut element";
  EXPECT_EQ(stream.FindLive(w, 4).data, nullptr) << "converted";
  EXPECT_EQ(stream.FindLive(w + w / 2, 4).data, nullptr) << "a buffer";
  const uint64_t at = kBlockElements * 4 - 40;  // the end of a block and the beginning of the next
  const TensorStream::Live live = stream.FindLive(at, 80);
  ASSERT_NE(live.data, nullptr);
  EXPECT_EQ(live.blocks.size(), 2);
  std::string want(80, '?');
  ASSERT_TRUE(stream.Fill(at, absl::MakeSpan(&want[0], want.size())).ok());

  LiveSends sends(*reader);
  const auto go_on = [] { return true; };
  std::optional<grpc::ByteBuffer> message = sends.Make(at, live, 80);
  ASSERT_TRUE(message.has_value());
  EXPECT_EQ(sends.Await([] { return false; }).code(), absl::StatusCode::kCancelled) << "it is still held";
  v1::Chunk chunk;
  ASSERT_TRUE(grpc::SerializationTraits<v1::Chunk>::Deserialize(&*message, &chunk).ok());
  EXPECT_EQ(chunk.offset(), at);
  EXPECT_EQ(chunk.data(), want);
  EXPECT_EQ(chunk.crc32c(), runtime::Crc32c(want));
  message.reset();
  EXPECT_TRUE(sends.Await(go_on).ok());

  message = sends.Make(at, live, 80);
  ASSERT_TRUE(Mutate(e, live.blocks.begin + 1, 3));  // before gRPC has read it
  message.reset();
  EXPECT_EQ(sends.Await(go_on).code(), absl::StatusCode::kAborted);
  LiveSends later(*reader);
  EXPECT_FALSE(later.Make(at, live, 80).has_value());
  const TensorStream::Live other = stream.FindLive(0, 80);
  message = later.Make(0, other, 80);
  ASSERT_TRUE(message.has_value()) << "its block has not changed";
  e.id = 0;  // released: blocks are not kept any more
  message.reset();
  EXPECT_EQ(later.Await(go_on).code(), absl::StatusCode::kAborted);
}

TEST_F(StateSegmentsTest, SlicesAndUnknownNames) {
  Cut(10, 100, 1);
  auto reader = SnapshotReader::Open(memory_.get(), 10);
  ASSERT_TRUE(reader.ok());
  TensorStream stream(memory_.get(), reader->get());
  auto w = FindValues(*memory_, "w", "param");
  ASSERT_TRUE(stream.Add(*w, *Slice::Create({30, 50}, {{1, 30, 20}, {2, 50, 40}}), DType::kFloat32).ok());
  float out[4];
  ASSERT_EQ(stream.bytes(), sizeof(out));
  ASSERT_TRUE(stream.Fill(0, absl::MakeSpan(reinterpret_cast<char*>(out), sizeof(out))).ok());
  EXPECT_EQ(std::vector<float>(out, out + 4), (std::vector<float>{52, 92, 1052, 1092}));

  EXPECT_EQ(stream.Add(*FindValues(*memory_, "w", "exp_avg"), DType::kFloat32).code(),
            absl::StatusCode::kNotFound);
  for (const auto& [name, plane] :
       {std::pair("x", "param"), std::pair("w", "grad"), std::pair("frozen", "exp_avg"),
        std::pair("w", "buffer"), std::pair("frozen", "step")}) {
    EXPECT_EQ(FindValues(*memory_, name, plane).status().code(), absl::StatusCode::kNotFound)
        << name << plane;
  }
}

TEST_F(StateSegmentsTest, ImportsAreFoundByPlaneAndBlock) {
  const int w = Tensor("w").index, b = Tensor("b").index, empty = Tensor("empty").index,
            frozen = Tensor("frozen").index;
  auto import = ImportSegment::Create(
      *memory_, 3, {{frozen, 0}, {w, 2}, {empty, 0}, {b, ImportSegment::kUpdateCount}, {b, 0}});
  ASSERT_TRUE(import.ok()) << import.status();
  const auto fill = [&](int item, float base) {
    absl::Span<float> v = import->Values(item);
    for (size_t i = 0; i < v.size(); ++i) v[i] = base + i;
    return v.size();
  };
  EXPECT_EQ(fill(0, 1000), 300);
  EXPECT_EQ(fill(1, 5000), 1500);
  EXPECT_EQ(fill(2, 0), 0);
  EXPECT_EQ(fill(3, 77), 1);
  EXPECT_EQ(fill(4, 2000), 7);

  auto read = ImportSegment::Open(*memory_, 3);
  ASSERT_TRUE(read.ok()) << read.status();
  for (int plane = 0; plane < 3; ++plane) {
    for (int64_t block = 0; block < memory_->layout().total_blocks(); ++block) {
      const float* values = read->Find(plane, block);
      const TensorInfo& t = memory_->layout().tensors()[memory_->layout().TensorAt(block)];
      const bool has = (plane == 0 && (t.index == frozen || t.index == b)) || (plane == 2 && t.index == w);
      ASSERT_EQ(values != nullptr, has) << plane << " " << block;
      if (!has) continue;
      const float base = t.index == frozen ? 1000 : t.index == b ? 2000 : 5000;
      const int64_t n = t.ElementsIn(block);
      for (int64_t i = 0; i < kBlockElements; ++i) {
        ASSERT_EQ(values[i], i < n ? base + (block - t.blocks.begin) * kBlockElements + i : 0);
      }
    }
  }
  EXPECT_EQ(read->UpdateCount(b), std::optional<uint64_t>(77));
  EXPECT_EQ(read->UpdateCount(w), std::nullopt);
  ASSERT_TRUE(ImportSegment::Remove(dir_, 3).ok());
  EXPECT_EQ(ImportSegment::Open(*memory_, 3).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace sherd::server
