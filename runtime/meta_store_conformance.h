// What every MetaStore promises, as tests that run on each implementation.
//
//   INSTANTIATE_TEST_SUITE_P(Etcd, MetaStoreConformance, ::testing::Values(StoreKind{"Etcd", MakeWorld}),
//                            StoreKindName);
//
// The tests are in meta_store_conformance.cc.
#ifndef SHERD_RUNTIME_META_STORE_CONFORMANCE_H_
#define SHERD_RUNTIME_META_STORE_CONFORMANCE_H_

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "runtime/meta_store.h"
#include "runtime/mutex.h"

namespace sherd::runtime {

inline constexpr absl::Duration kLong = absl::Seconds(60);

// One place that stores are open on.
class StoreWorld {
 public:
  virtual ~StoreWorld() = default;
  virtual std::unique_ptr<MetaStore> Open() = 0;
  // Makes the leader of `election` lose it. False: leadership here is never lost.
  virtual bool Depose(const std::string& election) { return false; }
};

struct StoreKind {
  std::string name;
  std::function<std::unique_ptr<StoreWorld>()> make;  // empty; null: not to be had here
};
inline std::string StoreKindName(const ::testing::TestParamInfo<StoreKind>& info) { return info.param.name; }

class MetaStoreConformance : public ::testing::TestWithParam<StoreKind> {
 protected:
  void SetUp() override {
    world_ = GetParam().make();
    if (world_ == nullptr)
      GTEST_SKIP() << "there is no " << GetParam().name << " here: see tools/packages.txt";
    a_ = world_->Open();
    b_ = world_->Open();
  }
  std::unique_ptr<StoreWorld> world_;
  std::unique_ptr<MetaStore> a_, b_;
};

// Keys a watch told of, to be waited for.
class Told {
 public:
  MetaStore::WatchCallback Callback() {
    return [this](const std::string& key) {
      MutexLock lock(mu_);
      ++keys_[key];
      changed_.SignalAll();
    };
  }
  // Returns when `key` was told at least `times` times.
  bool Wait(const std::string& key, int times = 1) {
    MutexLock lock(mu_);
    while (keys_[key] < times) {
      if (!changed_.WaitFor(mu_, kLong)) return false;
    }
    return true;
  }
  // Returns when one of them was told so often.
  bool WaitAny(const std::map<std::string, int>& any) {
    MutexLock lock(mu_);
    for (;;) {
      for (const auto& [key, times] : any) {
        if (keys_[key] >= times) return true;
      }
      if (!changed_.WaitFor(mu_, kLong)) return false;
    }
  }
  int Count(const std::string& key) {
    MutexLock lock(mu_);
    return keys_[key];
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::map<std::string, int> keys_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_META_STORE_CONFORMANCE_H_
