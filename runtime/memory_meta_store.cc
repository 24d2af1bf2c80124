#include "runtime/memory_meta_store.h"

#include <algorithm>
#include <deque>
#include <list>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/mutex.h"

namespace sherd::runtime {
namespace {

absl::Status NoKey(absl::string_view key) {
  return absl::NotFoundError(absl::StrCat("there is no key ", key));
}

// One watch: a queue that one thread at a time drains, so that callbacks never overlap, not even when a
// callback makes the next change itself.
class Watcher {
 public:
  Watcher(std::string prefix, MetaStore::WatchCallback callback)
      : prefix_(std::move(prefix)), callback_(std::move(callback)) {}

  void Tell(const std::string& key) {
    if (!absl::StartsWith(key, prefix_)) return;
    {
      MutexLock lock(mu_);
      if (ended_) return;
      queue_.push_back(key);
      if (draining_) return;
      draining_ = true;
    }
    for (std::string next; Next(&next);) callback_(next);
  }

  void End() {
    MutexLock lock(mu_);
    ended_ = true;
    queue_.clear();
    while (draining_) idle_.Wait(mu_);
  }

 private:
  bool Next(std::string* key) {
    MutexLock lock(mu_);
    if (queue_.empty()) {
      draining_ = false;
      idle_.SignalAll();
      return false;
    }
    *key = std::move(queue_.front());
    queue_.pop_front();
    return true;
  }

  const std::string prefix_;
  const MetaStore::WatchCallback callback_;
  Mutex mu_;
  CondVar idle_;
  std::deque<std::string> queue_ ABSL_GUARDED_BY(mu_);
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace

// One candidate of an election. The first of an election's list leads.
class MemoryCandidate {
 public:
  MemoryCandidate(std::string identity, std::function<void()> gained, std::function<void()> lost)
      : identity_(std::move(identity)), gained_(std::move(gained)), lost_(std::move(lost)) {}

  const std::string& identity() const { return identity_; }

  void Gain() {
    {
      MutexLock lock(mu_);
      if (withdrawn_ || held_) return;
      held_ = calling_ = true;
    }
    Call(gained_);
  }

  // Ends the leadership; the caller tells, by TellLost, when others may see that.
  bool Lose() {
    MutexLock lock(mu_);
    while (calling_) idle_.Wait(mu_);
    if (withdrawn_ || !held_) return false;
    held_ = false;
    calling_ = true;
    return true;
  }
  void TellLost() { Call(lost_); }

  void Withdraw() {
    MutexLock lock(mu_);
    withdrawn_ = true;
    while (calling_) idle_.Wait(mu_);
  }

  bool held() const {
    MutexLock lock(mu_);
    return held_;
  }

 private:
  void Call(const std::function<void()>& what) {
    what();
    MutexLock lock(mu_);
    calling_ = false;
    idle_.SignalAll();
  }

  const std::string identity_;
  const std::function<void()> gained_, lost_;
  mutable Mutex mu_;
  CondVar idle_;
  bool held_ ABSL_GUARDED_BY(mu_) = false;
  bool calling_ ABSL_GUARDED_BY(mu_) = false;
  bool withdrawn_ ABSL_GUARDED_BY(mu_) = false;
};

class MemoryMetaWorld {
 public:
  // Tells the watches; to be called without the lock, after a change.
  void Changed(const std::string& key) {
    std::vector<std::shared_ptr<Watcher>> told;
    {
      MutexLock lock(mu);
      told.assign(watchers.begin(), watchers.end());
    }
    for (const auto& watcher : told) watcher->Tell(key);
  }

  void Withdraw(const std::string& election, const std::shared_ptr<MemoryCandidate>& candidate) {
    candidate->Withdraw();
    std::shared_ptr<MemoryCandidate> next;
    {
      MutexLock lock(mu);
      std::list<std::shared_ptr<MemoryCandidate>>& list = candidates[election];
      list.remove(candidate);
      if (!list.empty()) next = list.front();
    }
    if (next != nullptr) next->Gain();
  }

  void Lose(absl::string_view election) {
    std::shared_ptr<MemoryCandidate> loser, next;
    {
      MutexLock lock(mu);
      const auto it = candidates.find(election);
      if (it == candidates.end() || it->second.empty()) return;
      loser = it->second.front();
    }
    if (!loser->Lose()) return;
    {
      MutexLock lock(mu);
      std::list<std::shared_ptr<MemoryCandidate>>& list = candidates.find(election)->second;
      list.remove(loser);
      list.push_back(loser);
      next = list.front();
    }
    loser->TellLost();
    next->Gain();
  }

  // Whether a store of `leader` may change `key` now.
  static absl::Status MayChange(const MemoryCandidate* leader, absl::string_view key) {
    return leader == nullptr || leader->held() ? absl::OkStatus() : NotLeading(key);
  }

  Mutex mu;
  std::map<std::string, std::string, std::less<>> values ABSL_GUARDED_BY(mu);
  std::list<std::shared_ptr<Watcher>> watchers ABSL_GUARDED_BY(mu);
  std::map<std::string, std::list<std::shared_ptr<MemoryCandidate>>, std::less<>> candidates
      ABSL_GUARDED_BY(mu);
};

namespace {

class MemoryWatch final : public MetaStore::WatchHandle {
 public:
  MemoryWatch(std::shared_ptr<MemoryMetaWorld> world, std::shared_ptr<Watcher> watcher)
      : world_(std::move(world)), watcher_(std::move(watcher)) {}
  ~MemoryWatch() override {
    {
      MutexLock lock(world_->mu);
      world_->watchers.remove(watcher_);
    }
    watcher_->End();
  }

 private:
  const std::shared_ptr<MemoryMetaWorld> world_;
  const std::shared_ptr<Watcher> watcher_;
};

class MemoryLeadership final : public MetaStore::Leadership {
 public:
  MemoryLeadership(std::shared_ptr<MemoryMetaWorld> world, std::string election,
                   std::shared_ptr<MemoryCandidate> candidate, std::unique_ptr<MetaStore> store)
      : world_(std::move(world)),
        election_(std::move(election)),
        candidate_(std::move(candidate)),
        store_(std::move(store)) {}
  ~MemoryLeadership() override { world_->Withdraw(election_, candidate_); }
  bool held() const override { return candidate_->held(); }
  MetaStore& store() override { return *store_; }

 private:
  const std::shared_ptr<MemoryMetaWorld> world_;
  const std::string election_;
  const std::shared_ptr<MemoryCandidate> candidate_;
  const std::unique_ptr<MetaStore> store_;
};

}  // namespace

std::shared_ptr<MemoryMetaWorld> MakeMemoryMetaWorld() { return std::make_shared<MemoryMetaWorld>(); }

void LoseLeadership(MemoryMetaWorld& world, absl::string_view election) { world.Lose(election); }

absl::StatusOr<std::string> MemoryMetaStore::Get(absl::string_view key) {
  absl::Status valid = ValidateMetaKey(key);
  if (!valid.ok()) return valid;
  MutexLock lock(world_->mu);
  auto it = world_->values.find(key);
  if (it == world_->values.end()) return NoKey(key);
  return it->second;
}

absl::Status MemoryMetaStore::CreateIfAbsent(absl::string_view key, absl::string_view value) {
  absl::Status valid = ValidateMetaKey(key);
  valid.Update(ValidateMetaValue(key, value));
  if (!valid.ok()) return valid;
  {
    MutexLock lock(world_->mu);
    if (absl::Status may = MemoryMetaWorld::MayChange(leader_.get(), key); !may.ok()) return may;
    if (!world_->values.emplace(key, value).second) {
      return absl::AlreadyExistsError(absl::StrCat("key ", key, " exists"));
    }
  }
  world_->Changed(std::string(key));
  return absl::OkStatus();
}

absl::Status MemoryMetaStore::Put(absl::string_view key, absl::string_view value) {
  absl::Status valid = ValidateMetaKey(key);
  valid.Update(ValidateMetaValue(key, value));
  if (!valid.ok()) return valid;
  {
    MutexLock lock(world_->mu);
    if (absl::Status may = MemoryMetaWorld::MayChange(leader_.get(), key); !may.ok()) return may;
    world_->values.insert_or_assign(std::string(key), std::string(value));
  }
  world_->Changed(std::string(key));
  return absl::OkStatus();
}

absl::Status MemoryMetaStore::Delete(absl::string_view key) {
  absl::Status valid = ValidateMetaKey(key);
  if (!valid.ok()) return valid;
  {
    MutexLock lock(world_->mu);
    if (absl::Status may = MemoryMetaWorld::MayChange(leader_.get(), key); !may.ok()) return may;
    auto it = world_->values.find(key);
    if (it == world_->values.end()) return NoKey(key);
    world_->values.erase(it);
  }
  world_->Changed(std::string(key));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> MemoryMetaStore::List(absl::string_view prefix) {
  std::vector<std::string> keys;
  MutexLock lock(world_->mu);
  for (const auto& [key, value] : world_->values) {
    if (absl::StartsWith(key, prefix)) keys.push_back(key);
  }
  return keys;
}

absl::StatusOr<std::unique_ptr<MetaStore::WatchHandle>> MemoryMetaStore::Watch(absl::string_view prefix,
                                                                               WatchCallback callback) {
  auto watcher = std::make_shared<Watcher>(std::string(prefix), std::move(callback));
  {
    MutexLock lock(world_->mu);
    world_->watchers.push_back(watcher);
  }
  return std::make_unique<MemoryWatch>(world_, std::move(watcher));
}

absl::StatusOr<std::unique_ptr<MetaStore::Leadership>> MemoryMetaStore::Elect(absl::string_view name,
                                                                              absl::string_view identity,
                                                                              std::function<void()> gained,
                                                                              std::function<void()> lost) {
  if (absl::Status valid = ValidateCandidate(name, identity); !valid.ok()) return valid;
  auto candidate =
      std::make_shared<MemoryCandidate>(std::string(identity), std::move(gained), std::move(lost));
  bool leads;
  {
    MutexLock lock(world_->mu);
    std::list<std::shared_ptr<MemoryCandidate>>& list = world_->candidates[std::string(name)];
    list.push_back(candidate);
    leads = list.size() == 1;
  }
  std::unique_ptr<MetaStore> mine(new MemoryMetaStore(world_, candidate));
  auto leadership = std::make_unique<MemoryLeadership>(world_, std::string(name), candidate, std::move(mine));
  if (leads) candidate->Gain();
  return leadership;
}

absl::StatusOr<std::string> MemoryMetaStore::Leader(absl::string_view name) {
  absl::Status valid = ValidateElectionName(name);
  if (!valid.ok()) return valid;
  MutexLock lock(world_->mu);
  auto it = world_->candidates.find(name);
  if (it == world_->candidates.end() || it->second.empty()) {
    return absl::NotFoundError(absl::StrCat("nobody leads ", name));
  }
  return it->second.front()->identity();
}

}  // namespace sherd::runtime
