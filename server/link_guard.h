// Cancels a call to another host when this host's data link to it is not up: TCP alone would wait.
//
//   LinkGuard guard(node->others(), 0, &client_context);
//   grpc::Status status = stub->Snapshot(&client_context, request, &response);
//   if (std::string problem = guard.End(); !problem.empty()) ...      // it was cancelled for this
//
// One thread calls End or destroys it.
#ifndef SHERD_SERVER_LINK_GUARD_H_
#define SHERD_SERVER_LINK_GUARD_H_

#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "grpcpp/client_context.h"
#include "runtime/mutex.h"
#include "server/other_hosts.h"

namespace sherd::server {

class LinkGuard {
 public:
  // Both are borrowed. Null `others`: does nothing.
  LinkGuard(const OtherHosts* others, int host, grpc::ClientContext* context)
      : LinkGuard(others, host, [context] { context->TryCancel(); }) {}
  // For a call that the other host makes: `cancel` ends it.
  LinkGuard(const OtherHosts* others, int host, std::function<void()> cancel);
  ~LinkGuard() { End(); }

  // Watches no longer. What it has cancelled the call for, in words; empty: it has not.
  std::string End();

 private:
  void Run();

  const OtherHosts* const others_;
  const int host_;
  const std::function<void()> cancel_;
  runtime::Mutex mu_;
  runtime::CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::string problem_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_LINK_GUARD_H_
