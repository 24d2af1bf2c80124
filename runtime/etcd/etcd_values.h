// Values under keys in etcd, as MetaStore means them: any size up to 16 MiB, checked, and each change made
// exactly once or not at all, also when the answer to it is lost.
//
//   EtcdValues values(client, "/sherd/gpt/");
//   absl::Status s = values.Create("epoch/7", document, {});
//   s = values.Create("epoch/8", document, {EtcdCreatedAt(leader_key, revision)});    // ABORTED if deposed
//
// What is stored. Key `root` + key: a head of 31 bytes ("S1", 'v' or 'c', a token of 16 random bytes, crc32c
// and length of the value, little endian), then the value ('v'). One over 1 MiB ('c'), which etcd takes in no
// request, stands in pieces of 1 MiB under root + ".piece/" + key + "/" + token + "/" + number. Pieces are
// written first, under a lease, so that those of a dead writer vanish; the transaction that stores the head
// takes the lease off them, and drops those of the value before.
//
// Repeats. Every write is a transaction. One that finds its own token in the key has been made before. A Put
// or Delete compares the key's revision, so that an old one that was delayed changes nothing.
#ifndef SHERD_RUNTIME_ETCD_ETCD_VALUES_H_
#define SHERD_RUNTIME_ETCD_ETCD_VALUES_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/etcd/etcd_client.h"

namespace sherd::runtime {

// A value with the head that it is stored with.
struct EtcdRecord {
  std::string token;  // 16 bytes
  uint32_t crc = 0;
  uint64_t bytes = 0;
  bool in_pieces = false;
  std::string value;  // unless in_pieces
};
std::string EncodeEtcdRecord(const EtcdRecord& record);
// DATA_LOSS naming `place`.
absl::StatusOr<EtcdRecord> DecodeEtcdRecord(absl::string_view bytes, absl::string_view place);
// A value of at most 1 MiB with a token that no other has.
EtcdRecord MakeEtcdRecord(absl::string_view value);

// Keys and values are valid ones. Thread-safe; calls block for the client's patience at most.
class EtcdValues {
 public:
  // A change is made only if this holds at the same revision; ABORTED otherwise.
  using Guard = std::optional<etcdserverpb::Compare>;

  EtcdValues(std::shared_ptr<EtcdClient> client, std::string root);

  const std::string& root() const { return root_; }

  absl::StatusOr<std::string> Get(absl::string_view key);
  absl::Status Create(absl::string_view key, absl::string_view value, const Guard& guard);
  absl::Status Put(absl::string_view key, absl::string_view value, const Guard& guard);
  absl::Status Delete(absl::string_view key, const Guard& guard);
  absl::StatusOr<std::vector<std::string>> List(absl::string_view prefix);

 private:
  // What stands in a key.
  struct Stored {
    int64_t create_revision = 0;  // 0: nothing
    int64_t mod_revision = 0;
    int64_t read_at = 0;  // revision of the store when it was read
    std::string bytes;
  };
  struct Outcome {
    bool done = false;
    bool guarded = false;  // not done because of the guard
    Stored stored;         // if not done: what stands there
  };

  std::string FullKey(absl::string_view key) const { return root_ + std::string(key); }
  std::string PiecePrefix(absl::string_view key, absl::string_view token) const;
  absl::StatusOr<Stored> Read(absl::string_view key);
  absl::StatusOr<std::string> ReadPieces(absl::string_view key, const EtcdRecord& head, int64_t revision);
  // Writes the pieces of a large value; returns the lease they stand under, to be ended in any case.
  absl::StatusOr<int64_t> WritePieces(absl::string_view key, absl::string_view token,
                                      absl::string_view value);
  // Carries out `txn` and reads the key in it if a comparison fails.
  absl::StatusOr<Outcome> Commit(absl::string_view what, absl::string_view key, const Guard& guard,
                                 etcdserverpb::TxnRequest txn);
  absl::Status Store(absl::string_view key, absl::string_view value, const Guard& guard, bool only_if_absent);
  absl::Status StoreOnce(absl::string_view key, const EtcdRecord& record, const Guard& guard,
                         bool only_if_absent);
  // To `txn`: drop the pieces of what stands there.
  void DropPieces(absl::string_view key, const Stored& stored, etcdserverpb::TxnRequest* txn) const;

  const std::shared_ptr<EtcdClient> client_;
  const std::string root_;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_ETCD_ETCD_VALUES_H_
