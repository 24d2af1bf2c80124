#include "server/import_sweeper.h"

#include <dirent.h>
#include <unistd.h>

#include <memory>
#include <random>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "server/import_segment.h"
#include "server/import_writer.h"

namespace sherd::server {
namespace {

// The step in hand, the next one, and one to spare.
constexpr uint64_t kStepsToBeNamed = 3;

// Ids of imports that are being filled: this bit, the process, a random number.
constexpr uint64_t kUnnamed = uint64_t{1} << 62;
uint64_t OwnPart() { return kUnnamed | (static_cast<uint64_t>(::getpid()) & 0x3fffffff) << 32; }

}  // namespace

uint64_t ImportSweeper::UnnamedId() {
  std::random_device random;
  return OwnPart() | random();
}

void ImportSweeper::Sweep(const runtime::JobMemory& memory, uint64_t decided, Step done) {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(memory.dir().path().c_str()), ::closedir);
  if (dir == nullptr) return;
  std::map<uint64_t, Step> seen;
  while (const dirent* entry = ::readdir(dir.get())) {
    absl::string_view name = entry->d_name;
    uint64_t id = 0;
    if (!absl::ConsumePrefix(&name, "import.") || !absl::SimpleAtoi(name, &id)) continue;
    bool over = id <= decided;
    if ((id & kUnnamed) && !(id & ImportWriter::kNamedByStep)) over = (id >> 32 << 32) != OwnPart();
    if (id & ImportWriter::kNamedByStep) {
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
