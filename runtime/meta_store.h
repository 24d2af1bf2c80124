// A small, safe store for what a cluster must agree on: epoch documents, addresses, who leads. Values of
// kilobytes, changes by the second; not for tensors.
//
//   absl::Status s = store->CreateIfAbsent("epoch/7", document);   // commits the epoch, once, whoever tries
//   if (absl::IsAlreadyExists(s)) document = *store->Get("epoch/7");
//   auto watch = store->Watch("epoch/", [&](const std::string& key) { ... });
//   auto lead = store->Elect("coordinator", "10.0.0.5:7000", [&] { /* gained */ }, [&] { /* lost */ });
//   s = (*lead)->store().CreateIfAbsent("epoch/8", document);      // as leader, or not at all
//
// Implementations: FileMetaStore (file_meta_store.h), EtcdMetaStore (etcd/etcd_meta_store.h), MemoryMetaStore
// (memory_meta_store.h). One conformance suite (meta_store_conformance.h) runs on all.
#ifndef SHERD_RUNTIME_META_STORE_H_
#define SHERD_RUNTIME_META_STORE_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sherd::runtime {

// Thread-safe. Several stores, in one process or in many, may be open on the same place and see each other's
// changes.
//
// A key is parts of [A-Za-z0-9._-]+ joined by '/', none of them beginning with '.', 200 characters at most. A
// value is any bytes, kMaxValueBytes at most. Every call may return INVALID_ARGUMENT for a bad key or a value
// too long, and UNAVAILABLE when the store cannot be reached: then nothing is known of a change. When a
// change returned OK, it survives a crash of every process (and of the host, if the store is kept on disk).
class MetaStore {
 public:
  static constexpr size_t kMaxValueBytes = 16 << 20;
  static constexpr size_t kMaxIdentityBytes = 4096;

  // Called with a key after it was created, replaced or deleted. Look up the value: several changes may be
  // told once, and a change may be told twice.
  using WatchCallback = std::function<void(const std::string& key)>;

  // Ends the watch when destroyed: afterwards its callback does not run and never will. Not to be destroyed
  // from its own callback.
  class WatchHandle {
   public:
    virtual ~WatchHandle() = default;
  };

  // A candidacy, and the leadership once gained. Destroying it withdraws: afterwards its callback does not
  // run and never will, and another may lead. Not to be destroyed from its own callback.
  class Leadership {
   public:
    virtual ~Leadership() = default;
    // True from the moment it is gained until it is lost.
    virtual bool held() const = 0;
    // The same store, to be changed by the leader alone: a change takes effect only if this leadership holds
    // at that very moment; ABORTED otherwise, and nothing changed. Lives as long as this object.
    virtual MetaStore& store() = 0;
  };

  virtual ~MetaStore() = default;

  // NOT_FOUND; DATA_LOSS naming the place when what is stored is damaged.
  virtual absl::StatusOr<std::string> Get(absl::string_view key) = 0;

  // Stores `value` if nothing has the key. ALREADY_EXISTS otherwise, and nothing changes: of all who try,
  // exactly one gets OK. After an error that is not ALREADY_EXISTS, look.
  virtual absl::Status CreateIfAbsent(absl::string_view key, absl::string_view value) = 0;

  // Stores `value`; a reader sees the old value or the new one, whole.
  virtual absl::Status Put(absl::string_view key, absl::string_view value) = 0;

  // NOT_FOUND.
  virtual absl::Status Delete(absl::string_view key) = 0;

  // Keys that begin with `prefix` (any characters; "" for all), sorted.
  virtual absl::StatusOr<std::vector<std::string>> List(absl::string_view prefix) = 0;

  // Reports every change made after Watch returns to keys that begin with `prefix`. Callbacks of one watch
  // run one at a time, on a thread of the store or of whoever made the change; they may use the store.
  virtual absl::StatusOr<std::unique_ptr<WatchHandle>> Watch(absl::string_view prefix,
                                                             WatchCallback callback) = 0;

  // Stands for leader of `name` (one part of a key). Calls `gained`, on a thread of the store or of whoever
  // withdrew, when no other candidate leads; that may be never. The leadership of a process that dies,
  // however it dies, passes on: at once where the store can see it, else when its lease ends. `lost` is
  // called, after `gained` returned, when a leadership ends before its object does: the store was out of
  // reach for too long. Then the candidate stands again, so that both may be called by turns. (A leadership
  // in files is never lost.) `identity`, kMaxIdentityBytes at most, is shown by Leader().
  virtual absl::StatusOr<std::unique_ptr<Leadership>> Elect(absl::string_view name,
                                                            absl::string_view identity,
                                                            std::function<void()> gained,
                                                            std::function<void()> lost) = 0;

  // The identity of the one that leads; NOT_FOUND when nobody does. For an instant after a change it may
  // still be the last one's.
  virtual absl::StatusOr<std::string> Leader(absl::string_view name) = 0;

  // Why the store cannot be reached at the moment, in words; empty while it can. Never blocks.
  virtual std::string Trouble() const { return ""; }
};

// INVALID_ARGUMENT with what a key may be.
absl::Status ValidateMetaKey(absl::string_view key);
// ABORTED: Leadership::store() of one that does not lead was to change `key`.
absl::Status NotLeading(absl::string_view key);
// INVALID_ARGUMENT unless `name` is a key of one part.
absl::Status ValidateElectionName(absl::string_view name);
// The same, and of who stands: INVALID_ARGUMENT when `identity` is longer than kMaxIdentityBytes.
absl::Status ValidateCandidate(absl::string_view name, absl::string_view identity);
// INVALID_ARGUMENT when `value` is longer than kMaxValueBytes.
absl::Status ValidateMetaValue(absl::string_view key, absl::string_view value);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_META_STORE_H_
