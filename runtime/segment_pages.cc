// Segment: where its memory comes from, huge pages where that can be, and first touch.
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/doorbell.h"
#include "runtime/mutex.h"
#include "runtime/segment.h"

// Linux 5.14; older kernels answer EINVAL.
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
// Linux 6.1; older ones answer EINVAL.
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace sherd::runtime {
namespace {

// Of a populating system call: small enough to heed `cancel` within milliseconds, large enough that the call
// does not count.
constexpr int64_t kPopulateBytes = 4 << 20;
// Of a page that one entry of the processor's tables maps whole.
constexpr int64_t kHugeBytes = 2 << 20;
// Taken by one call: enough for what a call costs on many processors not to count.
constexpr int64_t kTakenBytes = 32 * kHugeBytes;
// Calls for the same memory; and a kernel that refused so many in a row has none left, or does not know how.
constexpr int kTries = 3, kRefusals = 4;

int64_t RoundUp(int64_t bytes) {
  return (bytes + Segment::kPageBytes - 1) / Segment::kPageBytes * Segment::kPageBytes;
}

// Touches one range without changing it: one atomic read-modify-write a page, since others may store there
// meanwhile.
void TouchPages(uint8_t* begin, int64_t bytes, bool write) {
  for (int64_t i = 0; i < bytes; i += Segment::kPageBytes) {
    if (write) {
      __atomic_fetch_or(begin + i, 0, __ATOMIC_RELAXED);
    } else {
      (void)__atomic_load_n(begin + i, __ATOMIC_RELAXED);
    }
  }
}

// errno, or 0.
int Allocate(int fd, int64_t begin, int64_t end) {
  while (::fallocate(fd, 0, begin, end - begin) != 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

// Huge pages with zeros where nothing was. Asked for by name Linux makes them in shared memory also where
// /sys/kernel/mm/transparent_hugepage/shmem_enabled says "never" (not "deny"), but out of nothing only where
// one small page is: so it takes a fifth of the time that all small ones would, and a tenth with their first
// touch.
bool TakeHugePages(int fd, char* map, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; at += kHugeBytes) {
    if (Allocate(fd, at, at + Segment::kPageBytes) != 0) return false;
  }
  for (int tries = 0; tries < kTries;) {
    if (::madvise(map + begin, static_cast<size_t>(end - begin), MADV_COLLAPSE) == 0) return true;
    if (errno != EINTR && errno != EAGAIN) return false;
    tries += errno == EAGAIN ? 1 : 0;  // something holds a page for a moment
  }
  return false;
}

absl::Status PopulatePages(uint8_t* begin, int64_t bytes, bool write) {
  int rc;
  do {
    rc = ::madvise(begin, static_cast<size_t>(bytes), write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
  } while (rc != 0 && errno == EINTR);
  if (rc == 0) return absl::OkStatus();
  if (errno == EINVAL || errno == ENOSYS) {
    TouchPages(begin, bytes, write);
    return absl::OkStatus();
  }
  if (errno == ENOMEM || errno == EFAULT) {
    return absl::ResourceExhaustedError(absl::StrCat("the system refuses memory for ", bytes,
                                                     " bytes of a segment: raise the memory limit of this "
                                                     "container or use a smaller model"));
  }
  return absl::ErrnoToStatus(errno, "madvise");
}

}  // namespace

int Segment::TakePages(int fd, void* map, int64_t begin, int64_t end) {
  const int64_t first = std::min((begin + kHugeBytes - 1) / kHugeBytes * kHugeBytes, end);
  const int64_t last = std::max(end / kHugeBytes * kHugeBytes, first);
  std::atomic<int64_t> next{first};
  std::atomic<int> refusals{0};  // in a row
  std::atomic<int> error{0};
  const auto allocate = [&](int64_t from, int64_t to) {
    const int e = from < to ? Allocate(fd, from, to) : 0;
    if (e != 0) error.store(e);
  };
  const auto work = [&] {
    for (int64_t at; error.load() == 0 && (at = next.fetch_add(kTakenBytes)) < last;) {
      const int64_t stop = std::min(at + kTakenBytes, last);
      if (refusals.load() < kRefusals) {
        if (TakeHugePages(fd, static_cast<char*>(map), at, stop)) {
          refusals.store(0);
          continue;
        }
        refusals.fetch_add(1);
      }
      allocate(at, stop);  // whatever of it has its page already
    }
  };
  std::vector<std::thread> pool;
  const int64_t useful = std::min<int64_t>(UsableCores(), (last - first + kTakenBytes - 1) / kTakenBytes);
  for (int64_t i = 1; i < useful; ++i) pool.emplace_back(work);
  allocate(begin, first);
  work();
  if (error.load() == 0) allocate(std::max(begin, last), end);
  for (std::thread& t : pool) t.join();
  return error.load();
}

absl::Status Segment::PopulatePiece(int64_t begin, int64_t end) const {
  return PopulatePages(data_ + begin, end - begin, access_ == Access::kReadWrite);
}

absl::Status Segment::PopulateRange(int64_t begin, int64_t bytes, const std::atomic<bool>* cancel) const {
  const int64_t end = RoundUp(begin + bytes);
  begin -= begin % kPageBytes;
  while (bytes > 0 && begin < end) {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) {
      return absl::CancelledError("populating a segment was cancelled");
    }
    const int64_t stop = std::min((begin / kPopulateBytes + 1) * kPopulateBytes, end);
    if (absl::Status s = PopulatePiece(begin, stop); !s.ok()) return s;
    begin = stop;
  }
  return absl::OkStatus();
}

absl::Status Segment::Populate(int threads, const std::atomic<bool>* cancel) const {
  const int64_t total = RoundUp(size_);
  std::atomic<int64_t> next{0};
  Mutex mu;
  absl::Status result;
  auto work = [&] {
    for (int64_t begin; (begin = next.fetch_add(kPopulateBytes, std::memory_order_relaxed)) < total;) {
      absl::Status status = absl::CancelledError("populating a segment was cancelled");
      if (cancel == nullptr || !cancel->load(std::memory_order_relaxed)) {
        status = PopulatePiece(begin, std::min(begin + kPopulateBytes, total));
      }
      if (status.ok()) continue;
      next.store(total, std::memory_order_relaxed);
      MutexLock lock(mu);
      result.Update(status);
      return;
    }
  };
  std::vector<std::thread> pool;
  const int64_t useful = std::min<int64_t>(threads, (total + kPopulateBytes - 1) / kPopulateBytes);
  for (int64_t i = 1; i < useful; ++i) pool.emplace_back(work);
  work();
  for (std::thread& t : pool) t.join();
  return result;
}

}  // namespace sherd::runtime
