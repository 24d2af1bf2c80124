#include "server/import_sweeper.h"

#include <dirent.h>

#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "server/import_segment.h"

namespace sherd::server {
namespace {

// The step in hand, the next one, and one to spare.
constexpr uint64_t kStepsToBeNamed = 3;

}  // namespace

void ImportSweeper::Sweep(const runtime::JobMemory& memory, uint64_t decided, Step done) {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(memory.dir().path().c_str()), ::closedir);
  if (dir == nullptr) return;
  std::map<uint64_t, Step> seen;
  while (const dirent* entry = ::readdir(dir.get())) {
    absl::string_view name = entry->d_name;
    uint64_t id = 0;
    if (!absl::ConsumePrefix(&name, "import.") || !absl::SimpleAtoi(name, &id)) continue;
    bool over = id <= decided || ImportSegment::IsLeftUnnamed(id);
    if (id & ImportSegment::kNamedByStep) {
      const auto it = first_seen_.find(id);
      const Step since = it == first_seen_.end() ? done : it->second;
      over = done.value() >= since.value() + kStepsToBeNamed;
      seen[id] = since;
    }
    if (over) ImportSegment::Remove(memory.dir(), id).IgnoreError();
  }
  first_seen_.swap(seen);
}

}  // namespace sherd::server
