// Which of a job's hosts a process is on. Which ranks and slots are there, the reduction tree and the
// assignment say: a host's ranks are a group of the tree, and each slot stands on a host.
//
//   HostPlace place{1, 2};      // the second of two; place.Name() is "host-1"
//
// Plain value.
#ifndef SHERD_RUNTIME_HOST_PLACE_H_
#define SHERD_RUNTIME_HOST_PLACE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace sherd::runtime {

struct HostPlace {
  int index = 0;  // 0: the first, where the coordinator lives
  int count = 1;

  bool several() const { return count > 1; }
  // As members of a job of several hosts name it; empty in a job of one.
  std::string Name() const { return several() ? absl::StrCat("host-", index) : ""; }
};

// FAILED_PRECONDITION in a job of several hosts: `what` ("a snapshot") reaches only this one's share.
inline absl::Status CheckOneHost(const HostPlace& place, absl::string_view what) {
  if (!place.several()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(what, " is for jobs of one host; this one has ", place.count));
}

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_HOST_PLACE_H_
