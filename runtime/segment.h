// One piece of memory that processes of a host share and that outlives each of them: a file in the job's
// directory under /dev/shm, mapped. A header page says what it is; the payload follows, aligned to 4 KiB and
// zero at first.
//
//   absl::StatusOr<Segment> mine = Segment::Create(dir, "params-0", SegmentKind::kParameters, bytes);
//   float* p = mine->as<float>();
//   absl::StatusOr<Segment> theirs = Segment::Open(dir, "params-0", Segment::Access::kReadOnly,
//   SegmentKind::kParameters);
//
// A segment that can be seen by its name is whole: it is made under a temporary name and takes its
// own when complete. Its space is reserved
// when it is made, so that a full /dev/shm is an error here and never a SIGBUS later. Populating turns it
// into pages of 2 MiB where the kernel has them (Linux 6.1 and newer), in which memory is a good deal faster;
// all mappings are laid so that one serves every process. Mappings are not
// inherited by fork(): a forked data loader neither pays for them nor keeps them. A successor opens by name
// what a dead process made.
//
// Movable; unmaps at destruction, which does not remove the file (Unlink does, or the removal of the job's
// directory). Thread-compatible; the payload itself is shared memory, synchronised by its users.
#ifndef SHERD_RUNTIME_SEGMENT_H_
#define SHERD_RUNTIME_SEGMENT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/job_dir.h"

namespace sherd::runtime {

// What a segment holds; a program that opens one as something else is refused. Values are part of the format.
enum class SegmentKind : uint32_t {
  kParameters = 1,  // parameters in compute dtype
  kStaging = 2,     // gradients of one rank
  kPlane = 3,       // one plane of the owners
  kReduced = 4,     // reduced gradients
  kUndo = 5,        // undo blocks
  kStamps = 6,      // stamps per block
  kControl = 7,     // records and doorbells
  kSnapshot = 8,    // pool of blocks copied for open snapshots
  kImport = 9,      // values to be stored at a step boundary
  kExchange = 10,   // partial sums of gradients on their way between hosts
};

// "parameters", "staging", ...; "kind 17" for a value unknown here.
std::string Name(SegmentKind kind);

// `bytes` of address space that is nobody's and not accessible, at a place that is the same as `congruent_to`
// within a huge page: mapped there, memory can be in huge pages. MAP_FAILED, with errno, if there is none.
void* ReserveAligned(int64_t bytes, const void* congruent_to);

class Segment {
 public:
  enum class Access { kReadOnly, kReadWrite };

  // The format this program writes and reads.
  static constexpr uint32_t kFormatVersion = 1;
  static constexpr int64_t kPageBytes = 4096;

  // Makes `name` with `bytes` of payload (may be 0), mapped for reading and writing.
  //   INVALID_ARGUMENT    name is not [A-Za-z0-9_-][A-Za-z0-9._-]{0,99}; bytes are negative or beyond 2^46
  //   ALREADY_EXISTS      a segment has the name
  //   RESOURCE_EXHAUSTED  not enough room; says how much is needed and free
  // Memory is taken at once, in huge pages where Linux has any (6.1 and newer; no setting is needed): blocks
  // for about 0.1 s a gigabyte, or 0.3 s without, and then the first store to each page waits for the kernel.
  static absl::StatusOr<Segment> Create(const JobDir& dir, absl::string_view name, SegmentKind kind,
                                        int64_t bytes);

  // The same, but only `ranges` of the payload are reserved: the rest reads as zeros, takes no memory, and is
  // not to be written. REQUIRES: the ranges lie in the payload.
  struct Range {
    int64_t begin = 0, bytes = 0;
  };
  static absl::StatusOr<Segment> CreateSparse(const JobDir& dir, absl::string_view name, SegmentKind kind,
                                              int64_t bytes, const std::vector<Range>& ranges);

  // Maps an existing segment.
  //   NOT_FOUND            no such name
  //   FAILED_PRECONDITION  another user's, not a regular file, another format version, kind or job
  //   DATA_LOSS            not a segment, or its length contradicts its header
  static absl::StatusOr<Segment> Open(const JobDir& dir, absl::string_view name, Access access,
                                      SegmentKind kind);

  // Memory of the same manner without a name or header, of this process alone. INVALID_ARGUMENT;
  // RESOURCE_EXHAUSTED: the system has no room.
  static absl::StatusOr<Segment> Anonymous(int64_t bytes);

  // Removes the name; mappings stay valid. NOT_FOUND.
  static absl::Status Unlink(const JobDir& dir, absl::string_view name);

  Segment() = default;
  Segment(Segment&& other) noexcept;
  Segment& operator=(Segment&& other) noexcept;
  ~Segment();

  // Payload, aligned to 4 KiB. Null for a default-constructed or moved-from segment.
  uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  const std::string& name() const { return name_; }
  Access access() const { return access_; }
  // Random, new at each Create: tells a segment from another that had its name before. 0 for Anonymous.
  uint64_t creation_id() const { return creation_id_; }

  // First touch of all pages by `threads` (>= 1) threads, so that no later store waits for the kernel to
  // clear or map a page. Keeps the contents, and may run while others use the segment, from any thread.
  // CANCELLED soon after `*cancel` becomes true (`cancel` may be null). RESOURCE_EXHAUSTED when the memory
  // limit of a cgroup refuses the pages.
  absl::Status Populate(int threads, const std::atomic<bool>* cancel) const;
  // The same for bytes [begin, begin + bytes) of the payload, and the pages they share with others, in the
  // calling thread. REQUIRES: the range lies in the payload.
  absl::Status PopulateRange(int64_t begin, int64_t bytes, const std::atomic<bool>* cancel) const;

  // Reserves a part that CreateSparse left out, or gives memory back, of which only whole pages go: they read
  // as zeros again, in every process. Of a segment that has a name in `dir`. Reserving what is reserved and
  // giving back what is not changes nothing. RESOURCE_EXHAUSTED: as Create.
  absl::Status ReserveRange(const JobDir& dir, const Range& range) const;
  absl::Status GiveBackRange(const JobDir& dir, const Range& range) const;

  // Changes what this process may do with its mapping. PERMISSION_DENIED for kReadWrite on a segment that was
  // opened kReadOnly.
  absl::Status Protect(Access access);

 private:
  Segment(void* map, size_t map_bytes, int64_t offset, int64_t size, Access access);
  static absl::StatusOr<Segment> Make(const JobDir& dir, absl::string_view name, SegmentKind kind,
                                      int64_t bytes, const std::vector<Range>* ranges);
  static absl::StatusOr<Segment> Map(int fd, int64_t offset, int64_t size, Access access,
                                     const std::string& what);
  void Unmap();
  // Takes memory for bytes [begin, end) of a file that is mapped from its beginning at `map`, for writing: 0,
  // or an errno. What is there stays.
  static int TakePages(int fd, void* map, int64_t begin, int64_t end);
  static absl::Status Reserve(int fd, void* map, const JobDir& dir, absl::string_view name, int64_t begin,
                              int64_t bytes);
  // Bytes [begin, end) of the payload, whole pages.
  absl::Status PopulatePiece(int64_t begin, int64_t end) const;

  std::string name_;
  void* map_ = nullptr;
  size_t map_bytes_ = 0;
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
  Access access_ = Access::kReadOnly;
  uint64_t creation_id_ = 0;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_SEGMENT_H_
