#include "server/host_begin.h"

#include <fcntl.h>

#include <atomic>
#include <cerrno>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/clock.h"
#include "runtime/flock.h"
#include "runtime/unique_fd.h"
#include "server/host_takeover.h"
#include "server/restore_import.h"
#include "server/restore_operation.h"
#include "spdlog/spdlog.h"

namespace sherd::server {
namespace {

constexpr absl::Duration kLookAgain = absl::Milliseconds(50);

// Who holds it restores; it goes with its process.
absl::StatusOr<runtime::UniqueFd> Lock(const std::string& path, const std::function<bool()>& go_on) {
  runtime::UniqueFd lock(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  if (!lock.ok()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  while (runtime::Flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return absl::ErrnoToStatus(errno, absl::StrCat("cannot lock ", path));
    if (!go_on()) return absl::CancelledError("whoever waited for the host to begin has gone");
    absl::SleepFor(kLookAgain);
  }
  return lock;
}

}  // namespace

absl::Status BeginHost(JobHome& home, runtime::JobMemory& memory, int servers, const OtherHosts* others,
                       const std::function<bool()>& go_on) {
  std::atomic<uint32_t>& begun = memory.control().host_begun;
  if (begun.load(std::memory_order_acquire) != 0) return absl::OkStatus();
  const absl::StatusOr<std::optional<v1::RestoreRecord>> record = home.Restored();
  if (!record.ok()) return record.status();
  const absl::StatusOr<runtime::UniqueFd> lock = Lock(absl::StrCat(home.dir().path(), "/beginning"), go_on);
  if (!lock.ok()) return lock.status();
  if (begun.load(std::memory_order_acquire) != 0) return absl::OkStatus();
  if (others != nullptr) {
    if (const absl::Status taken = TakeOver(*others, memory, go_on); !taken.ok()) return taken;
  }
  if (record->has_value() && memory.control().initialized.load(std::memory_order_acquire) == 0) {
    if (servers < 1) return absl::UnavailableError("the job has no servers yet: repeat the call");
    const absl::Time start = runtime::SteadyNow();
    const absl::Status restored = RestoreHost(memory, **record, servers, go_on);
    if (!restored.ok()) return OnHost(home.place(), restored);
    spdlog::info("host {} has its part of {}/{}, in {}", home.place().index, (*record)->directory(),
                 (*record)->tag(), absl::FormatDuration(runtime::SteadyNow() - start));
  }
  begun.store(1, std::memory_order_release);
  return absl::OkStatus();
}

}  // namespace sherd::server
