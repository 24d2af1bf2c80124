#include "server/import_sweeper.h"

#include <utility>

#include "server/import_names.h"
#include "server/import_segment.h"

namespace sherd::server {
namespace {

// The step in hand, the next one, and one to spare.
constexpr uint64_t kStepsToBeNamed = 3;

}  // namespace

void ImportSweeper::Sweep(const runtime::JobMemory& memory, uint64_t decided, Step done) {
  std::map<uint64_t, Step> seen;
  for (const uint64_t id : ImportSegment::List(memory.dir())) {
    bool over = id <= decided || ImportSegment::IsLeftUnnamed(id);
    if (id & ImportSegment::kNamedByStep) {
      const auto it = first_seen_.find(id);
      const Step since = it == first_seen_.end() ? done : it->second;
      over = done.value() >= since.value() + kStepsToBeNamed;
      seen[id] = since;
    }
    if (over) {
      ImportSegment::Remove(memory.dir(), id).IgnoreError();
    } else {
      RemoveIfGivenUp(memory, id);
    }
  }
  first_seen_.swap(seen);
}

}  // namespace sherd::server
