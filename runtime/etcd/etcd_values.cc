#include "runtime/etcd/etcd_values.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/clock.h"
#include "runtime/crc32c.h"
#include "runtime/etcd/etcd_lease.h"
#include "runtime/meta_store.h"

namespace sherd::runtime {
namespace {

constexpr char kMagic[] = "S1";
constexpr size_t kTokenBytes = 16;
constexpr size_t kHeadBytes = 2 + 1 + kTokenBytes + 4 + 8;
// etcd takes 1.5 MiB in a request unless told otherwise.
constexpr size_t kPieceBytes = 1 << 20;
// For which the pieces of a writer that died stay.
constexpr absl::Duration kPieceLife = absl::Minutes(2);
// Of a value that is replaced all the time.
constexpr int kMostRounds = 100;

std::string NewToken() {
  thread_local std::random_device random;
  std::string token(kTokenBytes, '\0');
  for (size_t i = 0; i < kTokenBytes; i += 4) {
    const uint32_t word = random();
    for (size_t b = 0; b < 4; ++b) token[i + b] = static_cast<char>(word >> (8 * b));
  }
  return token;
}

void AppendLittleEndian(uint64_t value, int bytes, std::string* out) {
  for (int b = 0; b < bytes; ++b) out->push_back(static_cast<char>(value >> (8 * b)));
}

uint64_t LittleEndian(absl::string_view bytes) {
  uint64_t value = 0;
  for (size_t b = bytes.size(); b-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[b]);
  return value;
}

absl::Status Deposed(absl::string_view what) {
  return absl::AbortedError(
      absl::StrCat("cannot ", what, ": this process leads no longer; nothing was changed"));
}

absl::Status NoKey(absl::string_view key) {
  return absl::NotFoundError(absl::StrCat("etcd has no key ", key));
}

absl::Status TooRestless(absl::string_view what) {
  return absl::UnavailableError(
      absl::StrCat("cannot ", what, ": others changed it ", kMostRounds, " times meanwhile"));
}

}  // namespace

std::string EncodeEtcdRecord(const EtcdRecord& record) {
  std::string out = absl::StrCat(kMagic, record.in_pieces ? "c" : "v", record.token);
  AppendLittleEndian(record.crc, 4, &out);
  AppendLittleEndian(record.bytes, 8, &out);
  out += record.value;
  return out;
}

absl::StatusOr<EtcdRecord> DecodeEtcdRecord(absl::string_view bytes, absl::string_view place) {
  const auto damaged = [&](absl::string_view how) {
    return absl::DataLossError(absl::StrCat("etcd's key ", place, " holds no value of Sherd's: ", how));
  };
  if (bytes.size() < kHeadBytes) return damaged(absl::StrCat("only ", bytes.size(), " bytes"));
  if (!absl::StartsWith(bytes, kMagic) || (bytes[2] != 'v' && bytes[2] != 'c'))
    return damaged("another head");
  EtcdRecord record;
  record.in_pieces = bytes[2] == 'c';
  record.token = std::string(bytes.substr(3, kTokenBytes));
  record.crc = static_cast<uint32_t>(LittleEndian(bytes.substr(3 + kTokenBytes, 4)));
  record.bytes = LittleEndian(bytes.substr(3 + kTokenBytes + 4, 8));
  const absl::string_view rest = bytes.substr(kHeadBytes);
  if (record.bytes > MetaStore::kMaxValueBytes || rest.size() != (record.in_pieces ? 0 : record.bytes))
    return damaged("another length than it says");
  if (!record.in_pieces && Crc32c(rest) != record.crc) return damaged("its checksum is another");
  record.value = std::string(rest);
  return record;
}

EtcdRecord MakeEtcdRecord(absl::string_view value) {
  return {NewToken(), Crc32c(value), value.size(), /*in_pieces=*/false, std::string(value)};
}

EtcdValues::EtcdValues(std::shared_ptr<EtcdClient> client, std::string root)
    : client_(std::move(client)), root_(std::move(root)) {}

std::string EtcdValues::PiecePrefix(absl::string_view key, absl::string_view token) const {
  return absl::StrCat(root_, ".piece/", key, "/", absl::BytesToHexString(token), "/");
}

// ---- Reading

absl::StatusOr<EtcdValues::Stored> EtcdValues::Read(absl::string_view key) {
  etcdserverpb::RangeRequest request;
  request.set_key(FullKey(key));
  etcdserverpb::RangeResponse response;
  const absl::Status s = client_->Call(absl::StrCat("read ", FullKey(key)),
                                       [&](EtcdClient::Server& server, grpc::ClientContext* context) {
                                         return server.kv->Range(context, request, &response);
                                       });
  if (!s.ok()) return s;
  Stored stored;
  stored.read_at = response.header().revision();
  if (response.kvs_size() == 0) return stored;
  stored.create_revision = response.kvs(0).create_revision();
  stored.mod_revision = response.kvs(0).mod_revision();
  stored.bytes = response.kvs(0).value();
  return stored;
}

// Of a revision that may have been compacted meanwhile: OUT_OF_RANGE.
absl::StatusOr<std::string> EtcdValues::ReadPieces(absl::string_view key, const EtcdRecord& head,
                                                   int64_t revision) {
  std::string value;
  const std::string place = FullKey(key);
  for (uint64_t piece = 0; value.size() < head.bytes; ++piece) {
    etcdserverpb::RangeRequest request;
    request.set_key(absl::StrCat(PiecePrefix(key, head.token), absl::StrFormat("%02d", piece)));
    request.set_revision(revision);
    etcdserverpb::RangeResponse response;
    const absl::Status s = client_->Call(absl::StrCat("read a piece of ", place),
                                         [&](EtcdClient::Server& server, grpc::ClientContext* context) {
                                           return server.kv->Range(context, request, &response);
                                         });
    if (!s.ok()) return s;
    if (response.kvs_size() == 0 || response.kvs(0).value().empty())
      return absl::DataLossError(absl::StrCat("etcd's key ", place, " has lost its piece ", piece));
    value += response.kvs(0).value();
  }
  if (value.size() != head.bytes || Crc32c(value) != head.crc)
    return absl::DataLossError(absl::StrCat("the pieces of etcd's key ", place, " are damaged"));
  return value;
}

absl::StatusOr<std::string> EtcdValues::Get(absl::string_view key) {
  for (int round = 0; round < kMostRounds; ++round) {
    absl::StatusOr<Stored> stored = Read(key);
    if (!stored.ok()) return stored.status();
    if (stored->create_revision == 0) return NoKey(FullKey(key));
    absl::StatusOr<EtcdRecord> record = DecodeEtcdRecord(stored->bytes, FullKey(key));
    if (!record.ok()) return record.status();
    if (!record->in_pieces) return std::move(record->value);
    // As of when the head was read: whoever replaces the value drops the pieces.
    absl::StatusOr<std::string> value = ReadPieces(key, *record, stored->read_at);
    if (!absl::IsOutOfRange(value.status())) return value;
  }
  return TooRestless(absl::StrCat("read ", FullKey(key)));
}

absl::StatusOr<std::vector<std::string>> EtcdValues::List(absl::string_view prefix) {
  etcdserverpb::RangeRequest request;
  request.set_key(FullKey(prefix));
  request.set_range_end(EtcdPrefixEnd(request.key()));
  request.set_keys_only(true);
  etcdserverpb::RangeResponse response;
  const absl::Status s = client_->Call(absl::StrCat("list ", request.key()),
                                       [&](EtcdClient::Server& server, grpc::ClientContext* context) {
                                         return server.kv->Range(context, request, &response);
                                       });
  if (!s.ok()) return s;
  std::vector<std::string> keys;
  for (const etcdserverpb::KeyValue& kv : response.kvs()) {
    std::string key = kv.key().substr(root_.size());
    if (ValidateMetaKey(key).ok()) keys.push_back(std::move(key));  // pieces and candidates are none
  }
  std::sort(keys.begin(), keys.end());
  return keys;
}

// ---- Changing

absl::StatusOr<EtcdValues::Outcome> EtcdValues::Commit(absl::string_view what, absl::string_view key,
                                                       const Guard& guard, etcdserverpb::TxnRequest txn) {
  txn.add_failure()->mutable_request_range()->set_key(FullKey(key));
  if (guard.has_value()) {
    *txn.add_compare() = *guard;
    txn.add_failure()->mutable_request_range()->set_key(guard->key());
  }
  etcdserverpb::TxnResponse response;
  const absl::Status s = client_->Call(what, [&](EtcdClient::Server& server, grpc::ClientContext* context) {
    return server.kv->Txn(context, txn, &response);
  });
  if (!s.ok()) return s;
  Outcome outcome;
  outcome.done = response.succeeded();
  if (outcome.done) return outcome;
  if (response.responses_size() < 1 + (guard.has_value() ? 1 : 0))
    return absl::InternalError(absl::StrCat("cannot ", what, ": etcd left out a part of its answer"));
  const etcdserverpb::RangeResponse& read = response.responses(0).response_range();
  outcome.stored.read_at = response.header().revision();
  if (read.kvs_size() > 0) {
    outcome.stored.create_revision = read.kvs(0).create_revision();
    outcome.stored.mod_revision = read.kvs(0).mod_revision();
    outcome.stored.bytes = read.kvs(0).value();
  }
  if (guard.has_value()) {
    const etcdserverpb::RangeResponse& held = response.responses(1).response_range();
    outcome.guarded = held.kvs_size() == 0 || held.kvs(0).create_revision() != guard->create_revision();
  }
  return outcome;
}

absl::StatusOr<int64_t> EtcdValues::WritePieces(absl::string_view key, absl::string_view token,
                                                absl::string_view value) {
  etcdserverpb::LeaseGrantRequest grant;
  grant.set_ttl(absl::ToInt64Seconds(kPieceLife));
  etcdserverpb::LeaseGrantResponse granted;
  absl::Status s =
      client_->Call("get a lease", [&](EtcdClient::Server& server, grpc::ClientContext* context) {
        return server.lease->LeaseGrant(context, grant, &granted);
      });
  if (!s.ok()) return s;
  for (size_t at = 0; at < value.size(); at += kPieceBytes) {
    etcdserverpb::PutRequest put;
    put.set_key(absl::StrCat(PiecePrefix(key, token), absl::StrFormat("%02d", at / kPieceBytes)));
    put.set_value(std::string(value.substr(at, kPieceBytes)));
    put.set_lease(granted.id());
    etcdserverpb::PutResponse response;
    s = client_->Call(absl::StrCat("write a piece of ", FullKey(key)),
                      [&](EtcdClient::Server& server, grpc::ClientContext* context) {
                        return server.kv->Put(context, put, &response);
                      });
    if (s.ok()) continue;
    RevokeEtcdLease(*client_, granted.id(), SteadyNow()).IgnoreError();
    return s;
  }
  return granted.id();
}

void EtcdValues::DropPieces(absl::string_view key, const Stored& stored,
                            etcdserverpb::TxnRequest* txn) const {
  const absl::StatusOr<EtcdRecord> old = DecodeEtcdRecord(stored.bytes, key);
  if (!old.ok() || !old->in_pieces) return;
  etcdserverpb::DeleteRangeRequest* drop = txn->add_success()->mutable_request_delete_range();
  drop->set_key(PiecePrefix(key, old->token));
  drop->set_range_end(EtcdPrefixEnd(drop->key()));
}

absl::Status EtcdValues::Create(absl::string_view key, absl::string_view value, const Guard& guard) {
  return Store(key, value, guard, /*only_if_absent=*/true);
}

absl::Status EtcdValues::Put(absl::string_view key, absl::string_view value, const Guard& guard) {
  return Store(key, value, guard, /*only_if_absent=*/false);
}

absl::Status EtcdValues::Store(absl::string_view key, absl::string_view value, const Guard& guard,
                               bool only_if_absent) {
  EtcdRecord record = {NewToken(), Crc32c(value), value.size(), value.size() > kPieceBytes, ""};
  if (!record.in_pieces) {
    record.value = std::string(value);
    return StoreOnce(key, record, guard, only_if_absent);
  }
  const absl::StatusOr<int64_t> lease = WritePieces(key, record.token, value);
  if (!lease.ok()) return lease.status();
  const absl::Status stored = StoreOnce(key, record, guard, only_if_absent);
  // Once stored the pieces are not its any more; otherwise they go with it.
  RevokeEtcdLease(*client_, *lease, SteadyNow() + client_->options().attempt).IgnoreError();
  return stored;
}

absl::Status EtcdValues::StoreOnce(absl::string_view key, const EtcdRecord& record, const Guard& guard,
                                   bool only_if_absent) {
  const std::string what = absl::StrCat("write ", FullKey(key));
  Stored there;
  if (!only_if_absent) {
    absl::StatusOr<Stored> read = Read(key);
    if (!read.ok()) return read.status();
    there = *std::move(read);
  }
  for (int round = 0; round < kMostRounds; ++round) {
    etcdserverpb::TxnRequest txn;
    *txn.add_compare() = EtcdChangedAt(FullKey(key), there.mod_revision);
    etcdserverpb::PutRequest* put = txn.add_success()->mutable_request_put();
    put->set_key(FullKey(key));
    put->set_value(EncodeEtcdRecord(record));
    for (size_t at = 0; record.in_pieces && at < record.bytes; at += kPieceBytes) {
      etcdserverpb::PutRequest* keep = txn.add_success()->mutable_request_put();
      keep->set_key(absl::StrCat(PiecePrefix(key, record.token), absl::StrFormat("%02d", at / kPieceBytes)));
      keep->set_ignore_value(true);
    }
    DropPieces(key, there, &txn);
    absl::StatusOr<Outcome> outcome = Commit(what, key, guard, std::move(txn));
    if (!outcome.ok()) return outcome.status();
    if (outcome->done) return absl::OkStatus();
    // Mine was made before, and its answer lost.
    const absl::StatusOr<EtcdRecord> now = DecodeEtcdRecord(outcome->stored.bytes, key);
    if (now.ok() && now->token == record.token) return absl::OkStatus();
    if (outcome->guarded) return Deposed(what);
    if (only_if_absent && outcome->stored.create_revision != 0)
      return absl::AlreadyExistsError(absl::StrCat("etcd has the key ", FullKey(key), " already"));
    there = std::move(outcome->stored);
  }
  return TooRestless(what);
}

absl::Status EtcdValues::Delete(absl::string_view key, const Guard& guard) {
  const std::string what = absl::StrCat("delete ", FullKey(key));
  absl::StatusOr<Stored> there = Read(key);
  if (!there.ok()) return there.status();
  if (there->create_revision == 0) return NoKey(FullKey(key));
  for (int round = 0; round < kMostRounds; ++round) {
    etcdserverpb::TxnRequest txn;
    *txn.add_compare() = EtcdChangedAt(FullKey(key), there->mod_revision);
    txn.add_success()->mutable_request_delete_range()->set_key(FullKey(key));
    DropPieces(key, *there, &txn);
    absl::StatusOr<Outcome> outcome = Commit(what, key, guard, std::move(txn));
    if (!outcome.ok()) return outcome.status();
    // Gone since it was read, by this very call or by another at that moment.
    if (outcome->done || outcome->stored.create_revision != there->create_revision) {
      return !outcome->done && outcome->guarded ? Deposed(what) : absl::OkStatus();
    }
    if (outcome->guarded) return Deposed(what);
    *there = std::move(outcome->stored);
  }
  return TooRestless(what);
}

}  // namespace sherd::runtime
