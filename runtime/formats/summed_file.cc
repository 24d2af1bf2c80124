#include "runtime/formats/summed_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/crc32c.h"
#include "runtime/formats/atomic_file.h"

namespace sherd::formats {
namespace {

using runtime::MutexLock;
using runtime::UniqueFd;

// What a manifest may ask a reader to allocate.
constexpr int64_t kMostChunkBytes = 64 << 20;

int64_t AlignUp(int64_t n) { return (n + kDirectAlignment - 1) / kDirectAlignment * kDirectAlignment; }

// Sets `*direct` to whether the file system takes O_DIRECT.
UniqueFd OpenMaybeDirect(const char* path, int flags, bool* direct) {
  if (*direct) {
    UniqueFd fd(open(path, flags | O_DIRECT, 0666));
    if (fd.ok() || errno != EINVAL) return fd;
    // Some file systems find out only after they have made the file.
    if (flags & O_EXCL) unlink(path);
    *direct = false;
  }
  return UniqueFd(open(path, flags, 0666));
}

}  // namespace

DirectBuffer::DirectBuffer(int64_t bytes)
    : memory_(static_cast<char*>(std::aligned_alloc(kDirectAlignment, AlignUp(bytes)))) {
  if (memory_ == nullptr) throw std::bad_alloc();
}

void DirectBuffer::Free::operator()(char* p) const { std::free(p); }

// ---------------------------------------------------------------- writing

absl::StatusOr<std::unique_ptr<SummedFileWriter>> SummedFileWriter::Create(const std::string& path,
                                                                           int64_t bytes, FileAccess access) {
  bool direct = access == FileAccess::kDirect;
  UniqueFd fd = OpenMaybeDirect(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, &direct);
  if (!fd.ok()) return FileError(errno, "create", path);
  std::unique_ptr<SummedFileWriter> writer(new SummedFileWriter(path, std::move(fd), direct, bytes));
  // The space is asked for and not reserved: writing to reserved space costs a disk a quarter of its rate.
  struct statvfs space;
  if (fstatvfs(writer->fd_.get(), &space) == 0 && space.f_frsize > 0 && space.f_blocks > 0 &&
      static_cast<uint64_t>(bytes) / space.f_frsize > space.f_bavail) {
    return FileError(ENOSPC, absl::StrCat("write ", bytes, " bytes to"), path);
  }
  writer->thread_ = std::thread([w = writer.get()] { w->WriteLoop(); });
  return writer;
}

SummedFileWriter::SummedFileWriter(std::string path, UniqueFd fd, bool direct, int64_t bytes)
    : path_(std::move(path)), fd_(std::move(fd)), direct_(direct), bytes_(bytes) {
  for (int i = 0; i < kBuffers; ++i) buffers_.emplace_back(kSummedChunkBytes);
}

SummedFileWriter::~SummedFileWriter() {
  {
    MutexLock lock(mu_);
    end_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
  if (!finished_) unlink(path_.c_str());
}

absl::Span<char> SummedFileWriter::Room() {
  if (filled_ == 0) {
    // The buffer is the one that was handed over kBuffers chunks ago.
    MutexLock lock(mu_);
    while (handed_ - written_ >= kBuffers) changed_.Wait(mu_);
  }
  const int64_t chunk = static_cast<int64_t>(sum_.chunk_crc32c.size());
  return absl::MakeSpan(buffers_[chunk % kBuffers].data() + filled_, kSummedChunkBytes - filled_);
}

absl::Status SummedFileWriter::Advance(int64_t bytes) {
  const int64_t chunk = static_cast<int64_t>(sum_.chunk_crc32c.size());
  const char* produced = buffers_[chunk % kBuffers].data() + filled_;
  chunk_crc_ = runtime::ExtendCrc32c(chunk_crc_, produced, bytes);
  sum_.crc32c = runtime::ExtendCrc32c(sum_.crc32c, produced, bytes);
  filled_ += bytes;
  sum_.bytes += bytes;
  if (filled_ == kSummedChunkBytes) HandOver();
  MutexLock lock(mu_);
  return status_;
}

absl::Status SummedFileWriter::Append(absl::string_view bytes) {
  while (!bytes.empty()) {
    const absl::Span<char> room = Room();
    const size_t n = std::min(room.size(), bytes.size());
    std::memcpy(room.data(), bytes.data(), n);
    if (absl::Status s = Advance(static_cast<int64_t>(n)); !s.ok()) return s;
    bytes.remove_prefix(n);
  }
  return absl::OkStatus();
}

void SummedFileWriter::HandOver() {
  const int64_t bytes = filled_;
  sum_.chunk_crc32c.push_back(chunk_crc_);
  filled_ = 0;
  chunk_crc_ = 0;
  MutexLock lock(mu_);
  last_bytes_ = bytes;
  ++handed_;
  changed_.SignalAll();
}

void SummedFileWriter::WriteLoop() {
  for (int64_t chunk = 0;; ++chunk) {
    int64_t bytes = kSummedChunkBytes;
    bool broken = false;
    {
      MutexLock lock(mu_);
      while (handed_ <= chunk && !end_) changed_.Wait(mu_);
      if (handed_ <= chunk) return;
      // Only the last chunk is shorter.
      if (handed_ == chunk + 1) bytes = last_bytes_;
      broken = !status_.ok();
    }
    absl::Status s;
    if (!broken) s = WriteChunk(buffers_[chunk % kBuffers].data(), chunk * kSummedChunkBytes, bytes);
    MutexLock lock(mu_);
    if (!s.ok()) status_ = s;
    written_ = chunk + 1;
    changed_.SignalAll();
  }
}

absl::Status SummedFileWriter::WriteChunk(const char* data, int64_t offset, int64_t bytes) {
  // The tail's padding is cut off by Finish.
  const int64_t end = offset + (direct_ ? AlignUp(bytes) : bytes);
  for (int64_t at = offset; at < end;) {
    const ssize_t n = pwrite(fd_.get(), data + (at - offset), end - at, at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return FileError(errno, "write", path_);
    // A short write that is not aligned can only come from a full disk: the next one says so.
    at += direct_ ? n / kDirectAlignment * kDirectAlignment : n;
    if (n < kDirectAlignment && direct_) return FileError(ENOSPC, "write", path_);
  }
  if (!direct_) {
    // This chunk on its way, the one before it at its end: no more than two are ever dirty.
    sync_file_range(fd_.get(), offset, bytes, SYNC_FILE_RANGE_WRITE);
    if (offset >= kSummedChunkBytes) {
      const int64_t before = offset - kSummedChunkBytes;
      sync_file_range(fd_.get(), before, kSummedChunkBytes,
                      SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
      posix_fadvise(fd_.get(), before, kSummedChunkBytes, POSIX_FADV_DONTNEED);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<FileSum> SummedFileWriter::Finish() {
  if (filled_ > 0) {
    const int64_t chunk = static_cast<int64_t>(sum_.chunk_crc32c.size());
    std::memset(buffers_[chunk % kBuffers].data() + filled_, 0, AlignUp(filled_) - filled_);
    HandOver();
  }
  {
    MutexLock lock(mu_);
    while (written_ < handed_) changed_.Wait(mu_);
    if (!status_.ok()) return status_;
  }
  if (sum_.bytes != bytes_) {
    return absl::InternalError(
        absl::StrCat(path_, " was to have ", bytes_, " bytes but ", sum_.bytes, " were produced"));
  }
  if (direct_ && ftruncate(fd_.get(), bytes_) != 0) return FileError(errno, "cut the padding of", path_);
  if (fsync(fd_.get()) != 0) return FileError(errno, "sync", path_);
  finished_ = true;
  return sum_;
}

// ---------------------------------------------------------------- reading

absl::Status CheckFileSum(const FileSum& sum) {
  if (sum.chunk_bytes < kDirectAlignment || sum.chunk_bytes > kMostChunkBytes ||
      sum.chunk_bytes % kDirectAlignment != 0) {
    return absl::InvalidArgumentError(absl::StrCat("chunk_bytes=", sum.chunk_bytes, " is no multiple of ",
                                                   kDirectAlignment, " up to ", kMostChunkBytes));
  }
  const int64_t sums = static_cast<int64_t>(sum.chunk_crc32c.size());
  if (sum.bytes < 0 || sum.bytes > sums * sum.chunk_bytes || sum.bytes <= (sums - 1) * sum.chunk_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(sum.bytes, " bytes do not go with the sums of ", sums,
                                                   " chunks of ", sum.chunk_bytes, " bytes"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SummedFileReader>> SummedFileReader::Open(const std::string& path, FileSum sum,
                                                                         FileAccess access) {
  if (absl::Status s = CheckFileSum(sum); !s.ok()) return s;
  bool direct = access == FileAccess::kDirect;
  // O_NONBLOCK: a pipe in place of the file must not make anybody wait.
  UniqueFd fd = OpenMaybeDirect(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC, &direct);
  if (!fd.ok()) return FileError(errno, "open", path);
  struct stat file;
  if (fstat(fd.get(), &file) != 0) return FileError(errno, "inspect", path);
  if (!S_ISREG(file.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  if (file.st_size != sum.bytes) {
    return absl::DataLossError(
        absl::StrCat(path, " is damaged: it has ", file.st_size, " bytes but ", sum.bytes, " were written"));
  }
  return std::unique_ptr<SummedFileReader>(new SummedFileReader(path, std::move(fd), direct, std::move(sum)));
}

int64_t SummedFileReader::buffer_bytes() const { return AlignUp(std::min(sum_.chunk_bytes, sum_.bytes)); }

absl::StatusOr<absl::Span<const char>> SummedFileReader::Read(int64_t i, const DirectBuffer& buffer) const {
  const int64_t offset = i * sum_.chunk_bytes;
  const int64_t bytes = std::min(sum_.chunk_bytes, sum_.bytes - offset);
  for (int64_t done = 0; done < bytes;) {
    const int64_t want = direct_ ? AlignUp(bytes) - done : bytes - done;
    const ssize_t n = pread(fd_.get(), buffer.data() + done, want, offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return FileError(errno, "read", path_);
    if (n == 0) {
      return absl::DataLossError(
          absl::StrCat(path_, " is damaged: it ends at byte ", offset + done, " of ", sum_.bytes));
    }
    done += n;
  }
  const uint32_t crc = runtime::Crc32c(buffer.data(), bytes);
  if (crc != sum_.chunk_crc32c[i]) {
    return absl::DataLossError(absl::StrCat(path_, " is damaged: bytes ", offset, " to ", offset + bytes,
                                            " have crc32c ", absl::Hex(crc, absl::kZeroPad8), " but ",
                                            absl::Hex(sum_.chunk_crc32c[i], absl::kZeroPad8),
                                            " was written"));
  }
  return absl::MakeConstSpan(buffer.data(), bytes);
}

}  // namespace sherd::formats
