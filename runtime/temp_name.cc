#include "runtime/temp_name.h"

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "runtime/dir_tree.h"
#include "runtime/process_identity.h"

namespace sherd::runtime {
namespace {

constexpr absl::string_view kPrefix = ".tmp.";

// True when `entry` is a TempName of `final_name` (or of any) whose creator is dead.
bool IsStale(absl::string_view entry, absl::string_view final_name) {
  if (!absl::ConsumePrefix(&entry, kPrefix)) return false;
  const size_t counter = entry.rfind('.');
  if (counter == absl::string_view::npos) return false;
  entry = entry.substr(0, counter);
  const size_t creator = entry.rfind('.');
  if (creator == absl::string_view::npos) return false;
  if (!final_name.empty() && entry.substr(0, creator) != final_name) return false;
  absl::StatusOr<ProcessIdentity> id = ParseProcessIdentity(entry.substr(creator + 1));
  return id.ok() && !IsAlive(*id);
}

}  // namespace

std::string TempName(absl::string_view final_name) {
  static std::atomic<uint64_t> counter{0};
  return absl::StrCat(kPrefix, final_name, ".", Self().ToString(), ".",
                      counter.fetch_add(1, std::memory_order_relaxed));
}

void SweepStaleTemps(int dir_fd, absl::string_view final_name) {
  absl::StatusOr<std::vector<std::string>> names = ListDir(dir_fd);
  if (!names.ok()) return;
  for (const std::string& name : *names) {
    if (IsStale(name, final_name)) ::unlinkat(dir_fd, name.c_str(), 0);
  }
}

}  // namespace sherd::runtime
