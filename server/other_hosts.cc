#include "server/other_hosts.h"

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/mutex.h"

namespace sherd::server {
namespace {

using runtime::MutexLock;

constexpr absl::Duration kLook = absl::Milliseconds(50);

}  // namespace

std::string OtherHosts::Problem(int host) const {
  const absl::StatusOr<runtime::JobMemory*> memory = home_->Memory();
  return memory.ok() ? (*memory)->control().LinkProblem(host) : "";
}

absl::Status OtherHosts::Named(int host, const absl::Status& status) {
  const std::string name = absl::StrCat("host ", host);
  if (status.ok() || absl::StrContains(status.message(), name)) return status;
  return absl::Status(status.code(), absl::StrCat(name, ": ", status.message()));
}

absl::StatusOr<std::unique_ptr<OtherHosts::Stub>> OtherHosts::Prepare(int host, absl::Time deadline,
                                                                      grpc::ClientContext* context) const {
  if (const std::string problem = Problem(host); !problem.empty()) return absl::UnavailableError(problem);
  const std::string address = address_of_(host);
  if (address.empty()) {
    return absl::UnavailableError(
        absl::StrCat("host ", host, " has not said yet where its servers answer: repeat the call"));
  }
  peers_->Prepare(context, deadline);
  return v1::CheckpointService::NewStub(peers_->To(address));
}

absl::Status OtherHosts::ForEach(absl::Time deadline, const Call& call,
                                 const std::function<bool()>& go_on) const {
  std::vector<int> hosts;
  for (int h = 0; h < home_->place().count; ++h) {
    if (h != home_->place().index) hosts.push_back(h);
  }
  return CallAll(hosts, deadline, call, go_on);
}

absl::Status OtherHosts::To(int host, absl::Time deadline, const Call& call,
                            const std::function<bool()>& go_on) const {
  return CallAll({host}, deadline, call, go_on);
}

absl::Status OtherHosts::CallAll(const std::vector<int>& hosts, absl::Time deadline, const Call& call,
                                 const std::function<bool()>& go_on) const {
  struct One {
    int host = 0;
    grpc::ClientContext context;
    std::unique_ptr<Stub> stub;
    std::string problem;  // for which it was cancelled
    bool ended = false;
    absl::Status status;
    std::thread thread;
  };
  std::vector<std::unique_ptr<One>> all;
  runtime::Mutex mu;
  runtime::CondVar changed;
  absl::Status first;
  const auto note = [&](const absl::Status& s) {
    // What was cancelled for another's sake says nothing.
    if (!s.ok() && (first.ok() || absl::IsCancelled(first))) first = s;
  };
  for (const int h : hosts) {
    all.push_back(std::make_unique<One>());
    One& one = *all.back();
    one.host = h;
    absl::StatusOr<std::unique_ptr<Stub>> stub = Prepare(h, deadline, &one.context);
    if (!stub.ok()) return stub.status();
    one.stub = *std::move(stub);
  }
  for (const std::unique_ptr<One>& o : all) {
    o->thread = std::thread([&, one = o.get()] {
      const absl::Status status = Named(one->host, call(one->host, *one->stub, &one->context));
      MutexLock lock(mu);
      one->status = status;
      one->ended = true;
      changed.SignalAll();
    });
  }
  for (;;) {
    MutexLock lock(mu);
    const auto ended = [](const std::unique_ptr<One>& o) { return o->ended; };
    if (std::all_of(all.begin(), all.end(), ended)) break;
    changed.WaitFor(mu, kLook);
    bool stop = go_on && !go_on();
    for (const std::unique_ptr<One>& o : all) {
      if (!o->ended && o->problem.empty()) o->problem = Problem(o->host);
      stop |= !o->problem.empty() || (o->ended && !o->status.ok());
    }
    for (const std::unique_ptr<One>& o : all) {
      if (stop && !o->ended) o->context.TryCancel();
    }
  }
  for (const std::unique_ptr<One>& o : all) {
    o->thread.join();
    note(!o->status.ok() && !o->problem.empty() ? absl::UnavailableError(o->problem) : o->status);
  }
  return first;
}

}  // namespace sherd::server
