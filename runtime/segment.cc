#include "runtime/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/temp_name.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {
namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 46;
// Of a page that one entry of the processor's tables maps whole.
constexpr int64_t kHugeBytes = 2 << 20;
constexpr char kMagic[8] = {'S', 'H', 'E', 'R', 'D', 'S', 'E', 'G'};

// The first bytes of the header page; the rest of the page is zero. Magic and version keep their places for
// ever, so that any program can tell what it does not understand.
struct Header {
  char magic[8];
  uint32_t version;
  uint32_t kind;
  uint64_t payload_bytes;
  uint64_t creation_id;
  uint64_t job_id;
};
static_assert(sizeof(Header) == 40 && sizeof(Header) <= Segment::kPageBytes);

int64_t RoundUp(int64_t bytes) {
  return (bytes + Segment::kPageBytes - 1) / Segment::kPageBytes * Segment::kPageBytes;
}

absl::Status ValidateName(absl::string_view name) {
  const bool characters = std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  });
  if (name.empty() || name.size() > 100 || name[0] == '.' || !characters) {
    return absl::InvalidArgumentError(absl::StrCat("segment name '", name,
                                                   "': use 1 to 100 letters, digits, '.', '_' or '-', "
                                                   "the first not '.'"));
  }
  return absl::OkStatus();
}

absl::Status NoRoom(const JobDir& dir, absl::string_view name, int64_t bytes) {
  struct statvfs fs;
  std::string free = "an unknown number of";
  if (::fstatvfs(dir.fd(), &fs) == 0) free = absl::StrCat(static_cast<uint64_t>(fs.f_bavail) * fs.f_frsize);
  return absl::ResourceExhaustedError(
      absl::StrCat("needs ", bytes, " bytes for ", name, " in ", dir.path(), ", ", free,
                   " free; remove what dead jobs left (sherd gc), enlarge that "
                   "file system, or choose another shared-memory directory"));
}

absl::StatusOr<Header> ReadHeader(int fd, const std::string& where, const JobDir& dir, SegmentKind kind) {
  struct stat st;
  if (::fstat(fd, &st) != 0) return absl::ErrnoToStatus(errno, where);
  if (!S_ISREG(st.st_mode))
    return absl::FailedPreconditionError(absl::StrCat(where, " is not a regular file"));
  if (st.st_uid != ::geteuid()) {
    return absl::FailedPreconditionError(
        absl::StrCat(where, " is owned by uid ", st.st_uid, ", not by uid ", ::geteuid(), ": remove it"));
  }
  Header h;
  if (::pread(fd, &h, sizeof(h), 0) != sizeof(h) || std::memcmp(h.magic, kMagic, sizeof(kMagic)) != 0) {
    return absl::DataLossError(
        absl::StrCat(where, " is not a segment: its header is damaged or was never written"));
  }
  if (h.version != Segment::kFormatVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        where, " has format version ", h.version, ", this program uses version ", Segment::kFormatVersion,
        ": run one version of Sherd in all processes of a job, or start the job anew"));
  }
  if (h.kind != static_cast<uint32_t>(kind)) {
    return absl::FailedPreconditionError(
        absl::StrCat(where, " holds ", Name(static_cast<SegmentKind>(h.kind)), ", not ", Name(kind)));
  }
  if (h.job_id != dir.id()) {
    return absl::FailedPreconditionError(
        absl::StrFormat("%s belongs to job %016x, not to %016x (%s)", where, h.job_id, dir.id(), dir.job()));
  }
  if (h.payload_bytes > static_cast<uint64_t>(kMaxBytes) ||
      st.st_size != Segment::kPageBytes + RoundUp(static_cast<int64_t>(h.payload_bytes))) {
    return absl::DataLossError(absl::StrCat(where, " is ", st.st_size,
                                            " bytes long, but its header promises ", h.payload_bytes,
                                            " after ", Segment::kPageBytes));
  }
  return h;
}

}  // namespace

std::string Name(SegmentKind kind) {
  switch (kind) {
    case SegmentKind::kParameters:
      return "parameters";
    case SegmentKind::kStaging:
      return "staging";
    case SegmentKind::kPlane:
      return "plane";
    case SegmentKind::kReduced:
      return "reduced gradients";
    case SegmentKind::kUndo:
      return "undo blocks";
    case SegmentKind::kStamps:
      return "stamps";
    case SegmentKind::kControl:
      return "control";
    case SegmentKind::kSnapshot:
      return "snapshot pool";
    case SegmentKind::kImport:
      return "import";
    case SegmentKind::kExchange:
      return "exchange";
  }
  return absl::StrCat("kind ", static_cast<uint32_t>(kind));
}

void* ReserveAligned(int64_t bytes, const void* congruent_to) {
  const auto reserve = [](int64_t n) {
    return ::mmap(nullptr, static_cast<size_t>(n), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                  0);
  };
  if (bytes < kHugeBytes) return reserve(bytes);
  void* const all = reserve(bytes + kHugeBytes);
  if (all == MAP_FAILED) return all;
  const auto begin = reinterpret_cast<uintptr_t>(all);
  const uintptr_t off = (reinterpret_cast<uintptr_t>(congruent_to) - begin) % kHugeBytes;
  if (off > 0) ::munmap(all, off);
  if (off < kHugeBytes) ::munmap(reinterpret_cast<void*>(begin + off + bytes), kHugeBytes - off);
  return reinterpret_cast<void*>(begin + off);
}

Segment::Segment(void* map, size_t map_bytes, int64_t offset, int64_t size, Access access)
    : map_(map),
      map_bytes_(map_bytes),
      data_(static_cast<uint8_t*>(map) + offset),
      size_(size),
      access_(access) {}

Segment::Segment(Segment&& other) noexcept { *this = std::move(other); }

Segment& Segment::operator=(Segment&& other) noexcept {
  if (this == &other) return *this;
  Unmap();
  name_ = std::move(other.name_);
  map_ = std::exchange(other.map_, nullptr);
  map_bytes_ = std::exchange(other.map_bytes_, 0);
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  access_ = other.access_;
  creation_id_ = std::exchange(other.creation_id_, 0);
  return *this;
}

Segment::~Segment() { Unmap(); }

void Segment::Unmap() {
  if (map_ != nullptr) ::munmap(map_, map_bytes_);
  map_ = nullptr;
}

absl::StatusOr<Segment> Segment::Map(int fd, int64_t offset, int64_t size, Access access,
                                     const std::string& what) {
  const int64_t total = std::max(offset + RoundUp(size), kPageBytes);
  const int protection = access == Access::kReadOnly ? PROT_READ : PROT_READ | PROT_WRITE;
  void* const place = ReserveAligned(total, /*congruent_to=*/nullptr);
  void* map = place == MAP_FAILED
                  ? place
                  : ::mmap(place, static_cast<size_t>(total), protection, MAP_SHARED | MAP_FIXED, fd, 0);
  if (map == MAP_FAILED) {
    const absl::Status failed =
        absl::ErrnoToStatus(errno, absl::StrCat("cannot map ", total, " bytes for ", what));
    if (place != MAP_FAILED) ::munmap(place, static_cast<size_t>(total));
    return failed;
  }
  Segment segment(map, static_cast<size_t>(total), offset, size, access);
  if (::madvise(map, static_cast<size_t>(total), MADV_DONTFORK) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("madvise of ", what));
  }
  return segment;
}

// Asking for free space first spares the kernel filling the disk only to find it too small.
absl::Status Segment::Reserve(int fd, void* map, const JobDir& dir, absl::string_view name, int64_t begin,
                              int64_t bytes) {
  struct statvfs fs;
  if (::fstatvfs(fd, &fs) == 0 && fs.f_blocks > 0 &&
      static_cast<uint64_t>(bytes) > static_cast<uint64_t>(fs.f_bavail) * fs.f_frsize) {
    return NoRoom(dir, name, bytes);
  }
  const int error = TakePages(fd, map, begin, begin + bytes);
  if (error == 0) return absl::OkStatus();
  if (error == ENOSPC || error == ENOMEM || error == EFBIG || error == EDQUOT)
    return NoRoom(dir, name, bytes);
  return absl::ErrnoToStatus(error, absl::StrCat("cannot reserve ", bytes, " bytes in ", dir.path()));
}

absl::StatusOr<Segment> Segment::Create(const JobDir& dir, absl::string_view name, SegmentKind kind,
                                        int64_t bytes) {
  return Make(dir, name, kind, bytes, nullptr);
}

absl::StatusOr<Segment> Segment::CreateSparse(const JobDir& dir, absl::string_view name, SegmentKind kind,
                                              int64_t bytes, const std::vector<Range>& ranges) {
  return Make(dir, name, kind, bytes, &ranges);
}

absl::StatusOr<Segment> Segment::Make(const JobDir& dir, absl::string_view name, SegmentKind kind,
                                      int64_t bytes, const std::vector<Range>* ranges) {
  absl::Status valid = ValidateName(name);
  if (!valid.ok()) return valid;
  if (bytes < 0 || bytes > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("segment ", name, " of ", bytes, " bytes: 0 to 2^46 are possible"));
  }
  Header header = {};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kFormatVersion;
  header.kind = static_cast<uint32_t>(kind);
  header.payload_bytes = static_cast<uint64_t>(bytes);
  header.job_id = dir.id();
  if (::getrandom(&header.creation_id, sizeof(header.creation_id), 0) != sizeof(header.creation_id)) {
    return absl::ErrnoToStatus(errno, "getrandom");
  }
  // What a killed creator of this name left would make its successor run out of room.
  SweepStaleTemps(dir.fd(), name);
  const std::string temp = TempName(name);
  const std::string where = absl::StrCat(dir.path(), "/", name);
  UniqueFd fd(::openat(dir.fd(), temp.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.ok()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot create ", where));
  absl::Cleanup remove = [&] { ::unlinkat(dir.fd(), temp.c_str(), 0); };
  const int64_t total = kPageBytes + RoundUp(bytes);
  if (::ftruncate(fd.get(), total) != 0) {
    if (errno == EFBIG) return NoRoom(dir, name, total);
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot size ", where));
  }
  absl::StatusOr<Segment> segment = Map(fd.get(), kPageBytes, bytes, Access::kReadWrite, where);
  if (!segment.ok()) return segment;
  segment->name_ = std::string(name);
  segment->creation_id_ = header.creation_id;
  std::vector<Range> taken = {{-kPageBytes, kPageBytes}};  // the header
  if (ranges == nullptr) {
    taken[0].bytes = total;
  } else {
    taken.insert(taken.end(), ranges->begin(), ranges->end());
  }
  for (const Range& r : taken) {
    if (r.bytes <= 0) continue;
    absl::Status reserved = Reserve(fd.get(), segment->map_, dir, name, kPageBytes + r.begin, r.bytes);
    if (!reserved.ok()) return reserved;
  }
  if (::pwrite(fd.get(), &header, sizeof(header), 0) != sizeof(header))
    return absl::ErrnoToStatus(errno, where);
  // A link, unlike a rename, never replaces a segment that another process made meanwhile.
  if (::linkat(dir.fd(), temp.c_str(), dir.fd(), segment->name_.c_str(), 0) != 0) {
    if (errno == EEXIST) return absl::AlreadyExistsError(absl::StrCat("segment ", where, " exists already"));
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot name ", where));
  }
  return segment;
}

absl::StatusOr<Segment> Segment::Open(const JobDir& dir, absl::string_view name, Access access,
                                      SegmentKind kind) {
  absl::Status valid = ValidateName(name);
  if (!valid.ok()) return valid;
  const std::string where = absl::StrCat(dir.path(), "/", name);
  const int mode = access == Access::kReadOnly ? O_RDONLY : O_RDWR;
  // O_NONBLOCK: opening a FIFO of that name must not hang.
  UniqueFd fd(::openat(dir.fd(), std::string(name).c_str(), mode | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd.ok()) {
    if (errno == ENOENT) return absl::NotFoundError(absl::StrCat("there is no segment ", where));
    if (errno == ELOOP)
      return absl::FailedPreconditionError(absl::StrCat(where, " is a link, not a segment"));
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", where));
  }
  absl::StatusOr<Header> header = ReadHeader(fd.get(), where, dir, kind);
  if (!header.ok()) return header.status();
  absl::StatusOr<Segment> segment =
      Map(fd.get(), kPageBytes, static_cast<int64_t>(header->payload_bytes), access, where);
  if (!segment.ok()) return segment;
  segment->name_ = std::string(name);
  segment->creation_id_ = header->creation_id;
  return segment;
}

absl::Status Segment::ReserveRange(const JobDir& dir, const Range& range) const {
  if (range.bytes <= 0) return absl::OkStatus();
  const UniqueFd fd(::openat(dir.fd(), name_.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.ok()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", dir.path(), "/", name_));
  return Reserve(fd.get(), map_, dir, name_, kPageBytes + range.begin, range.bytes);
}

absl::Status Segment::GiveBackRange(const JobDir& dir, const Range& range) const {
  const int64_t begin = RoundUp(range.begin), end = (range.begin + range.bytes) / kPageBytes * kPageBytes;
  if (begin >= end) return absl::OkStatus();
  const UniqueFd fd(::openat(dir.fd(), name_.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.ok()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", dir.path(), "/", name_));
  int rc;
  do {
    rc = ::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, kPageBytes + begin, end - begin);
  } while (rc != 0 && errno == EINTR);
  if (rc == 0) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot give memory of ", dir.path(), "/", name_, " back"));
}

absl::StatusOr<Segment> Segment::Anonymous(int64_t bytes) {
  if (bytes < 0 || bytes > kMaxBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a segment of ", bytes, " bytes: 0 to 2^46 are possible"));
  }
  UniqueFd fd(::memfd_create("sherd", MFD_CLOEXEC));
  if (!fd.ok()) return absl::ErrnoToStatus(errno, "memfd_create");
  const int64_t total = std::max(RoundUp(bytes), kPageBytes);
  if (::ftruncate(fd.get(), total) != 0) return absl::ErrnoToStatus(errno, "sizing a memfd");
  absl::StatusOr<Segment> segment = Map(fd.get(), 0, bytes, Access::kReadWrite, "an anonymous segment");
  if (!segment.ok()) return segment;
  if (const int error = TakePages(fd.get(), segment->map_, 0, total); error != 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot reserve ", bytes, " bytes of memory: ", std::strerror(error)));
  }
  return segment;
}

absl::Status Segment::Unlink(const JobDir& dir, absl::string_view name) {
  absl::Status valid = ValidateName(name);
  if (!valid.ok()) return valid;
  if (::unlinkat(dir.fd(), std::string(name).c_str(), 0) == 0) return absl::OkStatus();
  if (errno == ENOENT)
    return absl::NotFoundError(absl::StrCat("there is no segment ", dir.path(), "/", name));
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot remove ", dir.path(), "/", name));
}

absl::Status Segment::Protect(Access access) {
  const int protection = access == Access::kReadOnly ? PROT_READ : PROT_READ | PROT_WRITE;
  if (::mprotect(map_, map_bytes_, protection) != 0) {
    if (errno == EACCES) {
      return absl::PermissionDeniedError(absl::StrCat("segment ", name_, " was opened read-only"));
    }
    return absl::ErrnoToStatus(errno, absl::StrCat("mprotect of segment ", name_));
  }
  access_ = access;
  return absl::OkStatus();
}

}  // namespace sherd::runtime
