// Segment: first touch, in huge pages where that can be.
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
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
// Of a page that one entry of the processor's tables maps whole. Populating begins at multiples of it.
constexpr int64_t kHugeBytes = 2 << 20;
static_assert(kPopulateBytes % kHugeBytes == 0);
// A kernel that refused this many in a row has none left, or does not know how.
constexpr int kRefusals = 4;

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

// Whether so little of a huge page was touched that making one costs no more than touching the rest. To copy
// one that is in use takes the kernel ten times as long as to clear it.
bool Untouched(uint8_t* begin) {
  constexpr int64_t kPages = kHugeBytes / Segment::kPageBytes;
  unsigned char resident[kPages];
  if (::mincore(begin, kHugeBytes, resident) != 0) return false;
  return std::count_if(resident, resident + kPages, [](unsigned char r) { return (r & 1) != 0; }) <=
         kPages / 8;
}

// The same memory in huge pages, contents kept, where the kernel has any: whether it did so. Asked for by
// name it does so in shared memory also where /sys/kernel/mm/transparent_hugepage/shmem_enabled says "never"
// (not "deny").
bool Collapse(uint8_t* begin) {
  int rc;
  do {
    rc = ::madvise(begin, kHugeBytes, MADV_COLLAPSE);
  } while (rc != 0 && errno == EINTR);
  return rc == 0;
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

absl::Status Segment::PopulatePiece(int64_t begin, int64_t end, int* refusals) const {
  const int64_t first = data_ - static_cast<uint8_t*>(map_);  // where the payload begins in the mapping
  const auto mapped = static_cast<int64_t>(map_bytes_);
  begin += first;
  end += first;
  for (int64_t at = begin / kHugeBytes * kHugeBytes; at < end && access_ == Access::kReadWrite;
       at += kHugeBytes) {
    // Whole pages of memory that is reserved; another's share may be as well, then whoever comes first makes
    // both.
    const bool ours = dense_ ? at + kHugeBytes <= mapped : at >= begin && at + kHugeBytes <= end;
    uint8_t* const page = static_cast<uint8_t*>(map_) + at;
    if (!ours || *refusals >= kRefusals || !Untouched(page)) continue;
    *refusals = Collapse(page) ? 0 : *refusals + 1;
  }
  return PopulatePages(static_cast<uint8_t*>(map_) + begin, end - begin, access_ == Access::kReadWrite);
}

absl::Status Segment::PopulateRange(int64_t begin, int64_t bytes, const std::atomic<bool>* cancel) const {
  const int64_t end = RoundUp(begin + bytes);
  begin -= begin % kPageBytes;
  int refusals = 0;
  while (bytes > 0 && begin < end) {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) {
      return absl::CancelledError("populating a segment was cancelled");
    }
    const int64_t stop = std::min((begin / kPopulateBytes + 1) * kPopulateBytes, end);
    if (absl::Status s = PopulatePiece(begin, stop, &refusals); !s.ok()) return s;
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
    int refusals = 0;
    for (int64_t begin; (begin = next.fetch_add(kPopulateBytes, std::memory_order_relaxed)) < total;) {
      absl::Status status = absl::CancelledError("populating a segment was cancelled");
      if (cancel == nullptr || !cancel->load(std::memory_order_relaxed)) {
        status = PopulatePiece(begin, std::min(begin + kPopulateBytes, total), &refusals);
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
