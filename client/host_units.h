// Units of a stage-3 model on a host of several: this host has its share of each, and its agent brings the
// rest while a rank wants the unit (DESIGN.md, several hosts; runtime/gather_page.h).
//
//   HostUnitsOptions options;  options.rank = Rank(3);  options.on_wait = ...;
//   auto units = HostUnits(memory, options);        // a UnitSource for ParameterWindow
//
// Persistent units are whole on every host, and gathering them is SharedUnits'. Thread-compatible; Await and
// Renew block on the other hosts, and say which through on_wait.
#ifndef SHERD_CLIENT_HOST_UNITS_H_
#define SHERD_CLIENT_HOST_UNITS_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/parameter_window.h"
#include "core/types.h"
#include "runtime/job_memory.h"

namespace sherd::client {

struct HostUnitsOptions {
  Rank rank;
  runtime::SpinPolicy spin = runtime::SpinPolicy::None();
  // Called every two seconds while a wait lasts, with what it is for. May be empty.
  std::function<void(absl::Duration waited, const std::string& for_whom)> on_wait;
};

// `memory` is a trainer's, attached as that rank, and has a gather page. What a predecessor of this rank
// wanted is not wanted any more.
absl::StatusOr<std::unique_ptr<UnitSource>> HostUnits(std::shared_ptr<runtime::JobMemory> memory,
                                                      HostUnitsOptions options);

}  // namespace sherd::client

#endif  // SHERD_CLIENT_HOST_UNITS_H_
