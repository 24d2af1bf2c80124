// MetaStore in memory: for one process, simulation and tests.
//
//   auto world = MakeMemoryMetaWorld();
//   MemoryMetaStore a(world), b(world);     // two members of one cluster
//
// Callbacks run on the thread of the call that caused them, before it returns (unless another thread is
// delivering to the same watch at that moment): with one thread everything is deterministic. Destroying a
// Leadership stands for its holder's death.
#ifndef SHERD_RUNTIME_MEMORY_META_STORE_H_
#define SHERD_RUNTIME_MEMORY_META_STORE_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime/meta_store.h"

namespace sherd::runtime {

// What the stores share. Opaque.
class MemoryMetaWorld;
std::shared_ptr<MemoryMetaWorld> MakeMemoryMetaWorld();
// The leader of an election, if there is one, loses it, as one whose lease has ended; it stands again, last.
void LoseLeadership(MemoryMetaWorld& world, absl::string_view election);

class MemoryCandidate;

class MemoryMetaStore final : public MetaStore {
 public:
  explicit MemoryMetaStore(std::shared_ptr<MemoryMetaWorld> world) : world_(std::move(world)) {}

  absl::StatusOr<std::string> Get(absl::string_view key) override;
  absl::Status CreateIfAbsent(absl::string_view key, absl::string_view value) override;
  absl::Status Put(absl::string_view key, absl::string_view value) override;
  absl::Status Delete(absl::string_view key) override;
  absl::StatusOr<std::vector<std::string>> List(absl::string_view prefix) override;
  absl::StatusOr<std::unique_ptr<WatchHandle>> Watch(absl::string_view prefix,
                                                     WatchCallback callback) override;
  absl::StatusOr<std::unique_ptr<Leadership>> Elect(absl::string_view name, absl::string_view identity,
                                                    std::function<void()> gained,
                                                    std::function<void()> lost) override;
  absl::StatusOr<std::string> Leader(absl::string_view name) override;

 private:
  MemoryMetaStore(std::shared_ptr<MemoryMetaWorld> world, std::shared_ptr<const MemoryCandidate> leader)
      : world_(std::move(world)), leader_(std::move(leader)) {}

  const std::shared_ptr<MemoryMetaWorld> world_;
  const std::shared_ptr<const MemoryCandidate> leader_;  // who alone may change it by this; null: anybody
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_MEMORY_META_STORE_H_
