#include "client/rpc/endpoints.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "runtime/dir_tree.h"
#include "runtime/job_dir.h"
#include "runtime/unique_fd.h"

namespace sherd::rpc {
namespace {

absl::Status CheckEndpoint(absl::string_view endpoint) {
  const auto error = [&](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", endpoint, "\" is no endpoint: ", what, "; use unix:PATH or HOST:PORT"));
  };
  absl::string_view rest = endpoint;
  if (absl::ConsumePrefix(&rest, "unix:")) {
    if (!absl::StartsWith(rest, "/")) return error("the path must be absolute");
    if (rest.size() > kMaxSocketPath) {
      return error(absl::StrCat("a socket's path has at most ", kMaxSocketPath, " bytes"));
    }
    return absl::OkStatus();
  }
  const size_t colon = rest.rfind(':');
  if (colon == absl::string_view::npos || colon == 0) return error("no host or no port");
  int port = 0;
  if (!absl::SimpleAtoi(rest.substr(colon + 1), &port) || port < 1 || port > 65535) {
    return error("the port must be 1..65535");
  }
  return absl::OkStatus();
}

// s2 before s10: shorter names first, then by letters.
bool NaturalLess(const std::string& a, const std::string& b) {
  return std::make_pair(a.size(), a) < std::make_pair(b.size(), b);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ParseEndpoints(absl::string_view list) {
  std::vector<std::string> endpoints = absl::StrSplit(list, absl::ByAnyChar(", "), absl::SkipEmpty());
  if (endpoints.empty()) return CheckEndpoint(list);
  for (const std::string& endpoint : endpoints) {
    if (absl::Status status = CheckEndpoint(endpoint); !status.ok()) return status;
  }
  return endpoints;
}

absl::StatusOr<std::vector<std::string>> JobEndpoints(const std::string& job_dir) {
  runtime::UniqueFd fd(::open(job_dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.ok()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open the job's directory ", job_dir));
  absl::StatusOr<std::vector<std::string>> names = runtime::ListDir(fd.get());
  if (!names.ok()) return names.status();
  std::vector<std::string> endpoints;
  for (const std::string& name : *names) {
    if (absl::EndsWith(name, kSocketSuffix)) endpoints.push_back(absl::StrCat("unix:", job_dir, "/", name));
  }
  if (endpoints.empty()) {
    return absl::NotFoundError(absl::StrCat("the job at ", job_dir,
                                            " has no server's socket; name a server with --endpoint, or wait "
                                            "until one has started"));
  }
  std::sort(endpoints.begin(), endpoints.end(), NaturalLess);
  return endpoints;
}

absl::StatusOr<std::vector<std::string>> FindEndpoints(const EndpointSources& sources) {
  if (!sources.flag.empty()) return ParseEndpoints(sources.flag);
  if (!sources.environment.empty()) {
    absl::StatusOr<std::vector<std::string>> endpoints = ParseEndpoints(sources.environment);
    if (endpoints.ok()) return endpoints;
    return absl::InvalidArgumentError(absl::StrCat("SHERD_ENDPOINT: ", endpoints.status().message()));
  }
  absl::StatusOr<std::vector<runtime::JobDir::Info>> jobs = runtime::JobDir::List(sources.shm_root);
  if (!jobs.ok()) return jobs.status();
  std::vector<runtime::JobDir::Info> live;
  for (runtime::JobDir::Info& job : *jobs) {
    if (job.live) live.push_back(std::move(job));
  }
  if (live.empty()) {
    std::string text =
        "no job of this user runs on this host; start one with `sherd run`, or name a server with --endpoint";
    if (!jobs->empty()) {
      absl::StrAppend(&text, " (dead jobs left ", jobs->size(),
                      jobs->size() == 1 ? " directory" : " directories", ": `sherd gc` removes them)");
    }
    return absl::NotFoundError(text);
  }
  if (live.size() == 1) return JobEndpoints(live[0].path);
  std::vector<std::string> choices;
  for (const runtime::JobDir::Info& job : live) {
    absl::StatusOr<std::vector<std::string>> endpoints = JobEndpoints(job.path);
    choices.push_back(endpoints.ok() ? absl::StrCat(job.job, " (--endpoint ", endpoints->front(), ")")
                                     : job.job);
  }
  return absl::FailedPreconditionError(absl::StrCat(
      live.size(), " jobs run on this host: choose one with --endpoint: ", absl::StrJoin(choices, ", ")));
}

}  // namespace sherd::rpc
