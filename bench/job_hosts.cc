#include "bench/job_hosts.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/sherd_servers.h"
#include "runtime/clock.h"

namespace sherd::bench {
namespace {

using nlohmann::json;

// The hosts, once `so` is true of each.
template <typename So>
json HostsWhen(const std::string& endpoint, const char* what, const So& so) {
  const std::string command = absl::StrCat(SherdServers::InBuildTree("client/cli/sherd"),
                                           " status --json --endpoint ", endpoint, " 2>/dev/null");
  for (const absl::Time end = runtime::SteadyNow() + absl::Seconds(30); runtime::SteadyNow() < end;) {
    std::string text;
    char buffer[4096];
    std::FILE* out = ::popen(command.c_str(), "r");
    for (size_t n; out != nullptr && (n = std::fread(buffer, 1, sizeof(buffer), out)) > 0;)
      text.append(buffer, n);
    if (out != nullptr) ::pclose(out);
    const json status = json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (status.is_object() && status.contains("hosts") && !status["hosts"].empty() &&
        std::all_of(status["hosts"].begin(), status["hosts"].end(), so))
      return status["hosts"];
    absl::SleepFor(absl::Milliseconds(20));
  }
  std::fprintf(stderr, "%s: %s\n", endpoint.c_str(), what);
  std::_Exit(1);
}

}  // namespace

void AwaitHosts(const std::string& endpoint) {
  HostsWhen(endpoint, "the other host has not joined",
            [](const json& host) { return host.value("come", false); });
}

SentBytes ReadSentBytes(const std::string& endpoint, int step) {
  const json hosts = HostsWhen(endpoint, "not all hosts tell of the last step",
                               [&](const json& host) { return host.value("step", 0) >= step; });
  SentBytes sent;
  const auto count = static_cast<double>(hosts.size());
  for (const json& host : hosts) {
    for (const json& link : host["links"]) {
      sent.gradients += link.value("gradient_bytes", 0.0) / count;
      sent.parameters += link.value("parameter_bytes", 0.0) / count;
      sent.gathered += link.value("gathered_bytes", 0.0) / count;
    }
  }
  return sent;
}

}  // namespace sherd::bench
