#include "server/import_segment.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "runtime/process_identity.h"
#include "server/own_blocks.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;
using runtime::Segment;
using runtime::SegmentKind;

constexpr int64_t kBlockBytes = kBlockElements * 4;

// Ids of imports that are being filled: this bit, 22 of the process's pid (Linux has no larger ones), the low
// 15 of its start time, 25 random ones.
constexpr uint64_t kUnnamed = uint64_t{1} << 62;
constexpr int kPidAt = 40, kStartAt = 25;
constexpr uint64_t kPidBits = (1 << 22) - 1, kStartBits = (1 << 15) - 1, kRandomBits = (1 << 25) - 1;

constexpr char kPrefix[] = "import.";
std::string SegmentName(uint64_t id) { return absl::StrCat(kPrefix, id); }

// Blocks that an item's values take.
int64_t BlocksOf(const JobMemory& memory, const ImportSegment::Item& item) {
  return item.plane == ImportSegment::kUpdateCount ? 1 : memory.layout().tensors()[item.tensor].blocks.size();
}

}  // namespace

struct ImportSegment::Header {
  int64_t items;
  int64_t data_at;
  std::atomic<uint64_t> generation;
};

// Sorted by plane, then first block (tensor for kUpdateCount).
struct ImportSegment::Entry {
  int64_t begin_block;  // global; the tensor for kUpdateCount
  int64_t end_block;
  int64_t numel;
  int64_t data_block;  // where the values begin, in blocks from data_at
  int32_t plane;
  int32_t item;  // in the order given to Create
};

uint64_t ImportSegment::UnnamedId() {
  std::random_device random;
  const runtime::ProcessIdentity self = runtime::Self();
  return kUnnamed | (static_cast<uint64_t>(self.pid) & kPidBits) << kPidAt |
         (self.start_ticks & kStartBits) << kStartAt | (random() & kRandomBits);
}

uint64_t ImportSegment::IdForStep() {
  std::random_device random;
  return kNamedByStep | (uint64_t{random()} << 31 ^ random());
}

bool ImportSegment::IsUnnamed(uint64_t id) { return (id & kNamedByStep) == 0 && (id & kUnnamed) != 0; }

bool ImportSegment::IsLeftUnnamed(uint64_t id) {
  if (!IsUnnamed(id)) return false;
  const absl::StatusOr<runtime::ProcessIdentity> process =
      runtime::Identify(static_cast<pid_t>(id >> kPidAt & kPidBits));
  if (!process.ok()) return absl::IsNotFound(process.status());
  return (process->start_ticks & kStartBits) != (id >> kStartAt & kStartBits) || !runtime::IsAlive(*process);
}

int64_t ImportSegment::BytesFor(const JobMemory& memory, absl::Span<const Item> items) {
  int64_t bytes = (sizeof(Header) + items.size() * sizeof(Entry) + 63) / 64 * 64;
  for (const Item& item : items) bytes += BlocksOf(memory, item) * kBlockBytes;
  return bytes;
}

absl::Span<ImportSegment::Entry> ImportSegment::sorted() const {
  return absl::MakeSpan(reinterpret_cast<Entry*>(segment_.data() + sizeof(Header)),
                        segment_.as<Header>()->items);
}

float* ImportSegment::values(const Entry& e) const {
  return reinterpret_cast<float*>(segment_.data() + segment_.as<Header>()->data_at +
                                  e.data_block * kBlockBytes);
}

absl::StatusOr<ImportSegment> ImportSegment::Create(const JobMemory& memory, uint64_t id,
                                                    std::vector<Item> items) {
  const int64_t data_at = (sizeof(Header) + items.size() * sizeof(Entry) + 63) / 64 * 64;
  std::vector<Segment::Range> ranges = {{0, data_at}};
  int64_t begin = data_at;
  for (const Item& item : items) {
    const TensorInfo& t = memory.layout().tensors()[item.tensor];
    const bool count = item.plane == kUpdateCount;
    const BlockRange own = count ? BlockRange{0, 1} : OwnBlocks(memory, t);
    const int64_t first = count ? 0 : own.begin - t.blocks.begin;
    if (!own.empty()) ranges.push_back({begin + first * kBlockBytes, own.size() * kBlockBytes});
    begin += BlocksOf(memory, item) * kBlockBytes;
  }
  absl::StatusOr<Segment> segment = Segment::CreateSparse(memory.dir(), SegmentName(id), SegmentKind::kImport,
                                                          BytesFor(memory, items), ranges);
  if (!segment.ok()) return segment.status();
  ImportSegment import(*std::move(segment));
  Header& h = *import.segment_.as<Header>();
  h.items = items.size();
  h.data_at = data_at;
  absl::Span<Entry> entries = import.sorted();
  int64_t at = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const TensorInfo& t = memory.layout().tensors()[items[i].tensor];
    const bool count = items[i].plane == kUpdateCount;
    entries[i] = {count ? t.index : t.blocks.begin,
                  count ? t.index + 1 : t.blocks.end,
                  count ? 1 : t.numel,
                  at,
                  items[i].plane,
                  static_cast<int32_t>(i)};
    at += BlocksOf(memory, items[i]);
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.plane, a.begin_block, a.end_block) < std::tie(b.plane, b.begin_block, b.end_block);
  });
  import.place_.resize(items.size());
  for (size_t i = 0; i < items.size(); ++i) import.place_[entries[i].item] = static_cast<int32_t>(i);
  return import;
}

absl::StatusOr<ImportSegment> ImportSegment::Open(const JobMemory& memory, uint64_t id,
                                                  Segment::Access access) {
  absl::StatusOr<Segment> segment =
      Segment::Open(memory.dir(), SegmentName(id), access, SegmentKind::kImport);
  if (!segment.ok()) return segment.status();
  ImportSegment import(*std::move(segment));
  const absl::Status damaged = absl::DataLossError(absl::StrCat("segment ", SegmentName(id), " is damaged"));
  const int64_t size = import.segment_.size();
  if (size < static_cast<int64_t>(sizeof(Header))) return damaged;
  const Header& header = *import.segment_.as<Header>();
  const struct { int64_t items, data_at; } h = {header.items, header.data_at};
  if (h.items < 0 ||
      h.items > (size - static_cast<int64_t>(sizeof(Header))) / static_cast<int64_t>(sizeof(Entry)) ||
      h.data_at < 0 || h.data_at > size) {
    return damaged;
  }
  for (const Entry& e : import.sorted()) {
    const int64_t blocks = e.plane == kUpdateCount ? 1 : e.end_block - e.begin_block;
    if (blocks < 0 || blocks > memory.layout().total_blocks() || e.data_block < 0 ||
        e.data_block > (size - h.data_at) / kBlockBytes - blocks) {
      return damaged;
    }
  }
  return import;
}

absl::Status ImportSegment::Rename(const runtime::JobDir& dir, uint64_t from, uint64_t to) {
  // A link never replaces what has the name.
  if (::linkat(dir.fd(), SegmentName(from).c_str(), dir.fd(), SegmentName(to).c_str(), 0) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot name ", dir.path(), "/", SegmentName(to)));
  }
  return Segment::Unlink(dir, SegmentName(from));
}

absl::Status ImportSegment::Remove(const runtime::JobDir& dir, uint64_t id) {
  absl::Status s = Segment::Unlink(dir, SegmentName(id));
  return absl::IsNotFound(s) ? absl::OkStatus() : s;
}

std::vector<uint64_t> ImportSegment::List(const runtime::JobDir& dir) {
  std::vector<uint64_t> ids;
  const std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(dir.path().c_str()), ::closedir);
  while (const dirent* entry = open == nullptr ? nullptr : ::readdir(open.get())) {
    absl::string_view name = entry->d_name;
    uint64_t id = 0;
    if (absl::ConsumePrefix(&name, kPrefix) && absl::SimpleAtoi(name, &id)) ids.push_back(id);
  }
  return ids;
}

uint64_t ImportSegment::generation() const {
  return segment_.as<Header>()->generation.load(std::memory_order_acquire);
}

void ImportSegment::SetGeneration(uint64_t generation) const {
  segment_.as<Header>()->generation.store(generation, std::memory_order_release);
}

absl::Span<float> ImportSegment::Values(int i) const {
  const Entry& e = sorted()[place_[i]];
  return absl::MakeSpan(values(e), e.numel);
}

const float* ImportSegment::Find(int plane, int64_t block) const {
  // The first entry that ends after `block`: empty tensors end where they begin and are passed over.
  const absl::Span<Entry> all = sorted();
  const auto it = std::partition_point(all.begin(), all.end(), [&](const Entry& e) {
    return e.plane < plane || (e.plane == plane && e.end_block <= block);
  });
  if (it == all.end() || it->plane != plane || it->begin_block > block) return nullptr;
  return values(*it) + (block - it->begin_block) * kBlockElements;
}

std::optional<uint64_t> ImportSegment::UpdateCount(int tensor) const {
  const float* value = Find(kUpdateCount, tensor);
  if (value == nullptr) return std::nullopt;
  // Find has taken the tensor for a block: the entry covers exactly one.
  return static_cast<uint64_t>(std::llround(std::max(0.0f, *value)));
}

}  // namespace sherd::server
