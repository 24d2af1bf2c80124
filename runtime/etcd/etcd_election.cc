#include "runtime/etcd/etcd_election.h"

#include <sys/stat.h>

#include <fstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "runtime/clock.h"
#include "runtime/etcd/etcd_values.h"
#include "runtime/etcd/etcd_watch.h"
#include "runtime/exit_watch.h"
#include "runtime/process_identity.h"

namespace sherd::runtime {
namespace {

constexpr absl::Duration kPause = absl::Milliseconds(100);

// Where pids mean the same: a boot of a host, and a pid namespace on it.
std::string PidSpace() {
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  struct stat st = {};
  if (boot.empty() || ::stat("/proc/self/ns/pid", &st) != 0) return "unknown";
  return absl::StrCat(boot, ".", st.st_ino);
}

// What a candidate's key holds: its process and where that is, then the identity.
std::string Describe(absl::string_view identity) {
  return EncodeEtcdRecord(MakeEtcdRecord(absl::StrCat(PidSpace(), " ", Self().ToString(), " ", identity)));
}

struct Candidate {
  std::string identity;
  ProcessIdentity process;
  bool here = false;  // its process can be watched
};

absl::StatusOr<Candidate> Parse(const etcdserverpb::KeyValue& kv) {
  const absl::StatusOr<EtcdRecord> record = DecodeEtcdRecord(kv.value(), kv.key());
  if (!record.ok()) return record.status();
  const std::vector<std::string> parts = absl::StrSplit(record->value, absl::MaxSplits(' ', 2));
  if (parts.size() != 3)
    return absl::DataLossError(absl::StrCat("etcd's key ", kv.key(), " is no candidate's"));
  Candidate candidate;
  candidate.identity = parts[2];
  const absl::StatusOr<ProcessIdentity> process = ParseProcessIdentity(parts[1]);
  candidate.here = process.ok() && parts[0] != "unknown" && parts[0] == PidSpace();
  if (process.ok()) candidate.process = *process;
  return candidate;
}

// Candidates in the order of their standing, `most` at most (0: all).
absl::StatusOr<etcdserverpb::RangeResponse> Candidates(EtcdClient& client, const std::string& prefix,
                                                       int most, absl::Time deadline, EtcdCancel* cancel) {
  etcdserverpb::RangeRequest request;
  request.set_key(prefix);
  request.set_range_end(EtcdPrefixEnd(prefix));
  request.set_limit(most);
  request.set_sort_order(etcdserverpb::RangeRequest::ASCEND);
  request.set_sort_target(etcdserverpb::RangeRequest::CREATE);
  etcdserverpb::RangeResponse response;
  const absl::Status s = client.Call("see who leads", deadline, cancel,
                                     [&](EtcdClient::Server& server, grpc::ClientContext* context) {
                                       return server.kv->Range(context, request, &response);
                                     });
  if (!s.ok()) return s;
  return response;
}

}  // namespace

EtcdCandidacy::EtcdCandidacy(std::shared_ptr<EtcdClient> client, std::string prefix, std::string identity,
                             absl::Duration ttl, std::function<void()> gained, std::function<void()> lost)
    : client_(std::move(client)),
      prefix_(std::move(prefix)),
      identity_(std::move(identity)),
      ttl_(ttl),
      gained_(std::move(gained)),
      lost_(std::move(lost)) {
  thread_ = std::thread([this] { Run(); });
}

EtcdCandidacy::~EtcdCandidacy() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.SignalAll();
  }
  cancel_.Cancel();
  thread_.join();
}

std::optional<etcdserverpb::Compare> EtcdCandidacy::term() const {
  MutexLock lock(mu_);
  if (leading_ == nullptr || !leading_->alive()) return std::nullopt;
  return EtcdCreatedAt(key_, created_);
}

void EtcdCandidacy::Wake() {
  MutexLock lock(mu_);
  woken_ = true;
  changed_.SignalAll();
}

void EtcdCandidacy::Run() {
  while (!stopped()) {
    // Why it ended is in client_->Trouble() while etcd is away; otherwise it just stands again.
    Term().IgnoreError();
    cancel_.Sleep(kPause);
  }
}

absl::Status EtcdCandidacy::Term() {
  {
    MutexLock lock(mu_);
    lease_lost_ = false;
  }
  absl::StatusOr<std::unique_ptr<EtcdLease>> lease =
      EtcdLease::Grant(client_, ttl_, &cancel_, SteadyNow() + client_->options().patience, [this] {
        MutexLock lock(mu_);
        lease_lost_ = true;
        changed_.SignalAll();
      });
  if (!lease.ok()) return lease.status();
  const std::string key = absl::StrCat(prefix_, absl::StrFormat("%016x", (*lease)->id()));
  int64_t created = 0;
  if (absl::Status s = Stand(key, (*lease)->id(), &created); !s.ok()) return s;
  if (absl::Status s = AwaitTurn(key, created); !s.ok()) return s;
  {
    MutexLock lock(mu_);
    if (stop_ || lease_lost_) return absl::AbortedError("too late");
    leading_ = lease->get();
    key_ = key;
    created_ = created;
  }
  gained_();
  bool lost;
  {
    MutexLock lock(mu_);
    while (!stop_ && !lease_lost_) changed_.Wait(mu_);
    lost = !stop_;
    leading_ = nullptr;
  }
  if (lost) lost_();
  return absl::OkStatus();
}

absl::Status EtcdCandidacy::Stand(const std::string& key, int64_t lease, int64_t* created) {
  etcdserverpb::TxnRequest txn;
  *txn.add_compare() = EtcdCreatedAt(key, 0);
  etcdserverpb::PutRequest* put = txn.add_success()->mutable_request_put();
  put->set_key(key);
  put->set_value(Describe(identity_));
  put->set_lease(lease);
  // Stood already, and the answer was lost.
  txn.add_failure()->mutable_request_range()->set_key(key);
  etcdserverpb::TxnResponse response;
  const absl::Status s =
      client_->Call("stand for leader", SteadyNow() + client_->options().patience, &cancel_,
                    [&](EtcdClient::Server& server, grpc::ClientContext* context) {
                      return server.kv->Txn(context, txn, &response);
                    });
  if (!s.ok()) return s;
  *created = response.header().revision();
  if (response.succeeded()) return absl::OkStatus();
  if (response.responses_size() != 1 || response.responses(0).response_range().kvs_size() != 1)
    return absl::InternalError("etcd left out a part of its answer");
  *created = response.responses(0).response_range().kvs(0).create_revision();
  return absl::OkStatus();
}

absl::Status EtcdCandidacy::AwaitTurn(const std::string& key, int64_t created) {
  for (;;) {
    const absl::StatusOr<etcdserverpb::RangeResponse> candidates =
        Candidates(*client_, prefix_, 0, SteadyNow() + client_->options().patience, &cancel_);
    if (!candidates.ok()) return candidates.status();
    const etcdserverpb::KeyValue* before = nullptr;
    bool standing = false;
    for (const etcdserverpb::KeyValue& kv : candidates->kvs()) {
      if (kv.create_revision() < created) before = &kv;
      standing |= kv.key() == key && kv.create_revision() == created;
    }
    if (!standing) return absl::AbortedError("the lease has ended");
    if (before == nullptr) return absl::OkStatus();
    if (absl::Status s = AwaitEnd(*before); !s.ok()) return s;
  }
}

absl::Status EtcdCandidacy::AwaitEnd(const etcdserverpb::KeyValue& before) {
  {
    MutexLock lock(mu_);
    woken_ = false;
  }
  absl::StatusOr<std::unique_ptr<EtcdWatch>> watch =
      EtcdWatch::Start(client_, before.key(), "", SteadyNow() + client_->options().patience,
                       [this](const std::string&) { Wake(); });
  if (!watch.ok()) return watch.status();
  // It may have gone before the watch began.
  {
    etcdserverpb::RangeRequest request;
    request.set_key(before.key());
    etcdserverpb::RangeResponse response;
    const absl::Status s = client_->Call("see who leads", SteadyNow() + client_->options().patience, &cancel_,
                                         [&](EtcdClient::Server& server, grpc::ClientContext* context) {
                                           return server.kv->Range(context, request, &response);
                                         });
    if (!s.ok()) return s;
    if (response.kvs_size() == 0) return absl::OkStatus();
  }
  std::unique_ptr<ExitWatch> exits;
  bool dead = false;
  const absl::StatusOr<Candidate> candidate = Parse(before);
  if (candidate.ok() && candidate->here && candidate->process != Self()) {
    if (absl::StatusOr<std::unique_ptr<ExitWatch>> made = MakeExitWatch(); made.ok()) {
      exits = *std::move(made);
      (void)exits->Watch(candidate->process, [this](const ProcessIdentity&) { Wake(); });
    }
  }
  {
    MutexLock lock(mu_);
    while (!woken_ && !stop_ && !lease_lost_) changed_.Wait(mu_);
    if (stop_ || lease_lost_) return absl::AbortedError("withdrawn");
  }
  dead = exits != nullptr && !IsAlive(candidate->process);
  exits.reset();
  if (!dead) return absl::OkStatus();
  // It runs no more: nobody renews this lease or acts under it.
  uint64_t lease = 0;
  const std::string& key = before.key();
  if (!absl::SimpleHexAtoi(key.substr(key.rfind('/') + 1), &lease)) return absl::OkStatus();
  return RevokeEtcdLease(*client_, static_cast<int64_t>(lease), SteadyNow() + client_->options().patience);
}

absl::StatusOr<std::string> EtcdLeader(EtcdClient& client, const std::string& prefix, absl::Time deadline) {
  const absl::StatusOr<etcdserverpb::RangeResponse> first = Candidates(client, prefix, 1, deadline, nullptr);
  if (!first.ok()) return first.status();
  const absl::Status nobody = absl::NotFoundError(absl::StrCat("nobody leads in etcd's ", prefix));
  if (first->kvs_size() == 0) return nobody;
  const absl::StatusOr<Candidate> candidate = Parse(first->kvs(0));
  if (!candidate.ok()) return candidate.status();
  if (candidate->here && !IsAlive(candidate->process)) return nobody;
  return candidate->identity;
}

}  // namespace sherd::runtime
