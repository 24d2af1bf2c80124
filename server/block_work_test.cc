// A death in the middle of a block, and values set by hand, with parameters in 16 bits: the successor leaves
// the bytes that an undisturbed owner would have.
#include "server/block_work.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/block_journal.h"
#include "core/partition.h"
#include "gtest/gtest.h"
#include "kernels/convert.h"
#include "runtime/compute_parameters.h"
#include "runtime/kernel_types.h"
#include "runtime/test_root.h"

namespace sherd::server {
namespace {

using runtime::JobDir;
using runtime::JobMemory;

float ValueOf(int plane, int64_t i) { return static_cast<float>((i * 37 + plane * 11) % 1009) * 1e-3f; }

// One owner of a small model, before its first update.
class OneOwner {
 public:
  OneOwner(DType compute, bool stochastic, OptimizerKind optimizer = OptimizerKind::kAdamW)
      : dir_(*JobDir::Create(root_.path(), "t")) {
    JobSpec spec;
    spec.job = "t";
    spec.layout = *Layout::Create({{{"w", {30, 50}}, {"b", {7}}}, {{"v", {600}}}});
    spec.groups = {""};
    spec.world_size = 1;
    spec.compute = spec.staging = compute;
    spec.stochastic_rounding = stochastic;
    spec.rounding_seed = 3;
    spec.optimizer = optimizer;
    auto made = JobMemory::Create(&dir_, spec);
    EXPECT_TRUE(made.ok()) << made.status();
    memory_ = *std::move(made);
    EXPECT_TRUE(memory_->BeginFirstAssignment(1, HostMap::OneHost(1)).ok());
    for (int64_t b = 0; b < memory_->layout().total_blocks(); ++b) Fill(b);
  }

  // A block as it is before the first update.
  void Fill(int64_t block) {
    for (int64_t i = block * kBlockElements; i < (block + 1) * kBlockElements; ++i) {
      if (block < memory_->trainable_blocks()) memory_->grad()[i] = ValueOf(9, i);
    }
    for (int p = 0; p < memory_->planes(); ++p) {
      for (int64_t i = block * kBlockElements; i < (block + 1) * kBlockElements; ++i) {
        memory_->plane(p)[i] = ValueOf(p, i);
      }
    }
    kernels::FromFloat(memory_->plane(0) + block * kBlockElements, kBlockElements,
                       runtime::KernelType(memory_->spec().compute),
                       memory_->compute() + block * kBlockElements);
  }

  Verdict Commit() const {
    Verdict v;
    v.id = {Step(1), 0};
    v.has_grad = {7};
    v.groups.resize(1);
    v.groups[0][kLr] = 1e-2, v.groups[0][kBeta1] = 0.9, v.groups[0][kBeta2] = 0.95, v.groups[0][kEps] = 1e-8;
    v.groups[0][kMinCoeff] = 0.01, v.groups[0][kMaxCoeff] = 10;
    return v;
  }

  // A new process in the slot: takes up what it finds and applies the verdict.
  void Apply(const Verdict& verdict) {
    BlockWork work(memory_.get(), *memory_->owner(Slot(0)), &pool_, &counters_);
    work.Recover();
    work.SetRanges(OwnedRanges(memory_->layout(), Slot(0), 1), memory_->spec().world_size);
    if (kernels::Info(memory_->spec().optimizer).norms) {
      const absl::Status moved = work.PreUpdate(verdict);
      EXPECT_TRUE(moved.ok()) << moved;
    }
    const absl::Status applied = work.Apply(verdict, 0);
    EXPECT_TRUE(applied.ok()) << applied;
  }

  // An import between two steps.
  void Store(uint64_t import, StepId after) {
    BlockWork work(memory_.get(), *memory_->owner(Slot(0)), &pool_, &counters_);
    work.SetRanges(OwnedRanges(memory_->layout(), Slot(0), 1), /*world_size=*/1);
    const absl::Status stored = work.StoreImport(import, after);
    EXPECT_TRUE(stored.ok()) << stored;
  }

  // As a worker leaves it that died while it changed `block`: armed, `saved` elements in its undo buffer, all
  // that are there half written, and some more in 16 bits.
  void TearBlock(int worker, int64_t block, const Verdict& verdict, int64_t saved) {
    const runtime::WorkerUndo undo = (*memory_->owner(Slot(0)))->undo(worker);
    Fill(block);
    for (int p = 0; p < memory_->planes(); ++p) {
      float* const plane = memory_->plane(p) + block * kBlockElements;
      std::fill_n(undo.apply_planes + p * kBlockElements, kBlockElements, -78.0f);
      std::memcpy(undo.apply_planes + p * kBlockElements, plane, saved * 4);
      for (int i = 0; i < std::min<int64_t>(saved, 100); ++i) plane[i] = -77;
    }
    for (int i = 0; i < 50; ++i) memory_->compute()[block * kBlockElements + i] = 0x1234;
    undo.apply->saved.store(saved == kBlockElements ? kAllSaved : static_cast<uint64_t>(saved));
    undo.apply->mark.store(Mark::Of(verdict.id).word());
    undo.apply->block_plus_1.store(block + 1);
    memory_->apply_stamps()[block].store(0);
  }

  // As a worker leaves it that died in a pass over `block` whose mark is `mark`: what `arrays` were of the
  // first `saved` elements is in its undo buffer, and half written where it lies.
  void TearPass(int64_t block, Mark mark, int64_t saved, const std::vector<float*>& arrays) {
    const runtime::WorkerUndo undo = (*memory_->owner(Slot(0)))->undo(0);
    std::fill_n(undo.apply_planes, memory_->planes() * kBlockElements, -78.0f);
    for (size_t k = 0; k < arrays.size(); ++k) {
      float* const values = arrays[k] + block * kBlockElements;
      std::memcpy(undo.apply_planes + k * kBlockElements, values, saved * 4);
      std::fill_n(values, std::min<int64_t>(saved, 100), -77.0f);
    }
    undo.apply->saved.store(saved == kBlockElements ? kAllSaved : static_cast<uint64_t>(saved));
    undo.apply->mark.store(mark.word());
    undo.apply->block_plus_1.store(block + 1);
  }

  // Planes, then the parameters in 16 bits.
  std::string Bytes() const {
    std::string all;
    for (int p = 0; p < memory_->planes(); ++p) {
      all.append(reinterpret_cast<const char*>(memory_->plane(p)), memory_->sizes().plane_bytes(p));
    }
    return all.append(reinterpret_cast<const char*>(memory_->compute()), memory_->sizes().compute_bytes());
  }

  JobMemory& memory() { return *memory_; }

 private:
  runtime::TestRoot root_;
  JobDir dir_;
  std::unique_ptr<JobMemory> memory_;
  WorkerPool pool_{1};
  BlockWorkCounters counters_;
};

TEST(BlockWorkTest, ABlockTornByADeathIsDoneAgainBitForBit) {
  for (const DType compute : {DType::kBFloat16, DType::kFloat16}) {
    for (const bool stochastic : {false, true}) {
      OneOwner undisturbed(compute, stochastic), torn(compute, stochastic);
      const Verdict commit = undisturbed.Commit();
      const std::string before = undisturbed.Bytes();
      undisturbed.Apply(commit);
      ASSERT_NE(undisturbed.Bytes(), before);
      torn.Apply(commit);
      ASSERT_EQ(torn.Bytes(), undisturbed.Bytes());
      const int64_t blocks = torn.memory().layout().total_blocks();
      for (int64_t block = 0; block < blocks; ++block) {
        torn.TearBlock(0, block, commit, kBlockElements);
        torn.TearBlock(1, (block + 3) % blocks, commit, (block * 16) % kBlockElements);
        ASSERT_NE(torn.Bytes(), undisturbed.Bytes());
        torn.Apply(commit);
        ASSERT_EQ(torn.Bytes(), undisturbed.Bytes()) << "block " << block;
      }
    }
  }
}

// LAMB's first pass turns gradients into directions, its second moves values along them.
TEST(BlockWorkTest, ABlockTornInEitherPassIsDoneAgainBitForBit) {
  OneOwner undisturbed(DType::kBFloat16, true, OptimizerKind::kLamb);
  const Verdict commit = undisturbed.Commit();
  undisturbed.Apply(commit);
  const int64_t blocks = undisturbed.memory().layout().total_blocks();
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t saved = (block * 16) % kBlockElements;
    OneOwner torn(DType::kBFloat16, true, OptimizerKind::kLamb);
    JobMemory& m = torn.memory();
    torn.TearPass(block, Mark::JustBefore(commit.id), saved, {m.grad(), m.plane(1), m.plane(2)});
    torn.Apply(commit);
    ASSERT_EQ(torn.Bytes(), undisturbed.Bytes()) << "first pass, block " << block;
    // What the second pass found: the values before it.
    const auto tear_second = [&](int64_t kept, const std::vector<float*>& arrays) {
      for (int64_t i = block * kBlockElements; i < (block + 1) * kBlockElements; ++i)
        m.plane(0)[i] = ValueOf(0, i);
      m.apply_stamps()[block].store(Mark::JustBefore(commit.id).word());
      torn.TearPass(block, Mark::Of(commit.id), kept, arrays);
      torn.Apply(commit);
      ASSERT_EQ(torn.Bytes(), undisturbed.Bytes()) << "second pass, block " << block;
    };
    tear_second(saved, {m.plane(0)});
    tear_second(kBlockElements, {m.plane(0), m.plane(1), m.plane(2)});  // with values by hand
  }
}

TEST(BlockWorkTest, ValuesSetByHandAreRoundedToo) {
  OneOwner owner(DType::kBFloat16, /*stochastic=*/true);  // of a tensor that was never updated: to nearest
  JobMemory& memory = owner.memory();
  const TensorInfo& v = *memory.layout().Find("v");
  // A parameter, and another tensor's moment alone.
  auto import = ImportSegment::Create(memory, 5, {{v.index, 0}, {memory.layout().Find("w")->index, 1}});
  ASSERT_TRUE(import.ok()) << import.status();
  for (int64_t e = 0; e < v.numel; ++e) import->Values(0)[e] = 3.0f + static_cast<float>(e) * 1e-3f;
  Verdict skip = owner.Commit();
  skip.kind = VerdictKind::kSkip;
  skip.imports = {5};
  owner.Apply(skip);
  for (int64_t e = 0; e < v.numel; ++e) {
    const int64_t at = v.blocks.begin * kBlockElements + e;
    ASSERT_EQ(memory.compute()[at], kernels::Bf16FromFloat(3.0f + static_cast<float>(e) * 1e-3f));
  }
  const TensorInfo& w = *memory.layout().Find("w");
  for (int64_t i = w.blocks.begin * kBlockElements; i < w.blocks.end * kBlockElements; ++i) {
    ASSERT_EQ(memory.compute()[i], kernels::Bf16FromFloat(memory.plane(0)[i]));
  }
  EXPECT_EQ(memory.plane(1)[w.blocks.begin * kBlockElements], 0) << "the moment that was set";
}

// Owners of a host store the counts one after the other, and go by them: nobody may see one that is none.
TEST(BlockWorkTest, CountsOfUpdatesAreOnlyWhatTheyComeTo) {
  OneOwner owner(DType::kBFloat16, /*stochastic=*/true);
  JobMemory& memory = owner.memory();
  const TensorInfo& v = *memory.layout().Find("v");
  auto import = ImportSegment::Create(memory, 5, {{v.index, ImportSegment::kUpdateCount}});
  ASSERT_TRUE(import.ok()) << import.status();
  import->Values(0)[0] = 41;
  Verdict commit = owner.Commit();
  commit.imports = {5};
  owner.Apply(commit);
  const std::atomic<uint64_t>& count = memory.tensor_steps(commit.id.step)[v.index];
  ASSERT_EQ(count, 41u);
  std::atomic<bool> done{false};
  std::atomic<uint64_t> others{0};
  std::thread watcher([&] {
    while (!done) others += count.load(std::memory_order_relaxed) != 41;
  });
  for (int i = 0; i < 3000; ++i) owner.Apply(commit);
  done = true;
  watcher.join();
  EXPECT_EQ(others, 0u);
}

// Between two steps, and with one.
TEST(BlockWorkTest, AnotherCountOfUpdatesRoundsAnew) {
  for (const bool with_step : {false, true}) {
    SCOPED_TRACE(with_step);
    OneOwner owner(DType::kBFloat16, /*stochastic=*/true);
    JobMemory& memory = owner.memory();
    owner.Apply(owner.Commit());
    const std::vector<uint16_t> once(memory.compute(),
                                     memory.compute() + memory.layout().total_blocks() * kBlockElements);
    const TensorInfo& v = *memory.layout().Find("v");
    auto import = ImportSegment::Create(memory, 5, {{v.index, ImportSegment::kUpdateCount}});
    ASSERT_TRUE(import.ok()) << import.status();
    import->Values(0)[0] = 41;
    if (with_step) {
      Verdict skip = owner.Commit();
      skip.id.step = Step(2);
      skip.kind = VerdictKind::kSkip;
      skip.imports = {5};
      owner.Apply(skip);
    } else {
      owner.Store(5, {Step(1), 0});
    }
    std::vector<uint16_t> want = once;
    runtime::RoundToCompute(memory.spec(), memory.plane(0), v.blocks, 41, want.data());
    ASSERT_NE(want, once);
    EXPECT_TRUE(std::equal(want.begin(), want.end(), memory.compute()));
  }
}

}  // namespace
}  // namespace sherd::server
