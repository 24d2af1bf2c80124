#include "runtime/formats/zip_layout.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "runtime/formats/strict_json.h"
#include "runtime/formats/zip_records.h"

namespace sherd::formats {
namespace {

using zip::Put;

constexpr uint64_t kMostBytes = uint64_t{1} << 62;  // leaves room for every header in 63 bits
constexpr uint64_t kExtraHead = 4;                  // id and size
constexpr uint16_t kStored = 0;
constexpr uint16_t kFirstDay = 0x21;  // 1980-01-01

uint16_t VersionFor(bool wide) { return wide ? 45 : 20; }
bool IsWide(uint64_t value) { return value >= zip::kFull32; }
uint32_t Narrow(uint64_t value) { return static_cast<uint32_t>(std::min(value, zip::kFull32)); }

// Bytes that a local header needs before its padding.
uint64_t LeastHeader(const ZipLayout::Entry& entry) {
  return zip::kLocalBytes + entry.name.size() + (IsWide(entry.bytes) ? kExtraHead + 16 : 0) + kExtraHead;
}

// The 64-bit values of a central record, for the fields that do not fit theirs.
std::string CentralExtra(const ZipLayout::Entry& entry) {
  std::string values;
  if (IsWide(entry.bytes)) {
    Put<uint64_t>(entry.bytes, &values);
    Put<uint64_t>(entry.bytes, &values);
  }
  if (IsWide(entry.header_begin)) Put<uint64_t>(entry.header_begin, &values);
  if (values.empty()) return values;
  std::string extra;
  Put<uint16_t>(zip::kZip64Extra, &extra);
  Put<uint16_t>(values.size(), &extra);
  return extra + values;
}

void PutCentral(const ZipLayout::Entry& entry, uint32_t crc, std::string* out) {
  const std::string extra = CentralExtra(entry);
  Put<uint32_t>(zip::kCentralMark, out);
  Put<uint16_t>(VersionFor(!extra.empty()), out);  // made by
  Put<uint16_t>(VersionFor(!extra.empty()), out);  // needed
  Put<uint16_t>(zip::kUtf8, out);
  Put<uint16_t>(kStored, out);
  Put<uint16_t>(0, out);  // time
  Put<uint16_t>(kFirstDay, out);
  Put<uint32_t>(crc, out);
  Put<uint32_t>(Narrow(entry.bytes), out);
  Put<uint32_t>(Narrow(entry.bytes), out);
  Put<uint16_t>(entry.name.size(), out);
  Put<uint16_t>(extra.size(), out);
  Put<uint16_t>(0, out);  // comment
  Put<uint16_t>(0, out);  // disk
  Put<uint16_t>(0, out);  // attributes
  Put<uint32_t>(0, out);
  Put<uint32_t>(Narrow(entry.header_begin), out);
  *out += entry.name;
  *out += extra;
}

void PutEnd(uint64_t count, uint64_t begin, uint64_t bytes, std::string* out) {
  if (count >= zip::kFull16 || IsWide(begin) || IsWide(bytes)) {
    Put<uint32_t>(zip::kEnd64Mark, out);
    Put<uint64_t>(zip::kEnd64Bytes - 12, out);  // that follow
    Put<uint16_t>(VersionFor(true), out);
    Put<uint16_t>(VersionFor(true), out);
    Put<uint32_t>(0, out);  // disks
    Put<uint32_t>(0, out);
    Put<uint64_t>(count, out);
    Put<uint64_t>(count, out);
    Put<uint64_t>(bytes, out);
    Put<uint64_t>(begin, out);
    Put<uint32_t>(zip::kLocatorMark, out);
    Put<uint32_t>(0, out);
    Put<uint64_t>(begin + bytes, out);
    Put<uint32_t>(1, out);
  }
  Put<uint32_t>(zip::kEndMark, out);
  Put<uint16_t>(0, out);  // disks
  Put<uint16_t>(0, out);
  Put<uint16_t>(std::min(count, zip::kFull16), out);
  Put<uint16_t>(std::min(count, zip::kFull16), out);
  Put<uint32_t>(Narrow(bytes), out);
  Put<uint32_t>(Narrow(begin), out);
  Put<uint16_t>(0, out);  // comment
}

}  // namespace

absl::StatusOr<ZipLayout> ZipLayout::Make(std::vector<Item> items) {
  ZipLayout layout;
  absl::flat_hash_set<std::string> names;
  uint64_t at = 0, directory = 0;
  for (Item& item : items) {
    const std::string shown = absl::StrCat("zip entry ", Quoted(item.name));
    if (item.name.empty() || item.name.size() > zip::kFull16) {
      return absl::InvalidArgumentError(absl::StrCat(shown, ": a name has 1 to ", zip::kFull16, " bytes"));
    }
    if (!names.insert(item.name).second)
      return absl::InvalidArgumentError(absl::StrCat(shown, " is there twice"));
    if (item.bytes > kMostBytes || at > kMostBytes) {
      return absl::InvalidArgumentError(absl::StrCat(shown, ": the file would pass ", kMostBytes, " bytes"));
    }
    Entry& entry = layout.entries_.emplace_back();
    entry.name = std::move(item.name);
    entry.bytes = item.bytes;
    entry.header_begin = at;
    entry.data_begin = (at + LeastHeader(entry) + kAlignment - 1) / kAlignment * kAlignment;
    at = entry.data_begin + entry.bytes;
    directory += zip::kCentralBytes + entry.name.size() + CentralExtra(entry).size();
  }
  std::string end;
  PutEnd(layout.entries_.size(), at, directory, &end);
  layout.directory_begin_ = at;
  layout.file_bytes_ = at + directory + end.size();
  return layout;
}

std::string ZipLayout::LocalHeader(size_t i, uint32_t crc) const {
  const Entry& entry = entries_[i];
  const bool wide = IsWide(entry.bytes);
  const uint64_t size = entry.data_begin - entry.header_begin;
  const uint64_t padding = size - LeastHeader(entry);
  std::string out;
  out.reserve(size);
  Put<uint32_t>(zip::kLocalMark, &out);
  Put<uint16_t>(VersionFor(wide), &out);
  Put<uint16_t>(zip::kUtf8, &out);
  Put<uint16_t>(kStored, &out);
  Put<uint16_t>(0, &out);  // time
  Put<uint16_t>(kFirstDay, &out);
  Put<uint32_t>(crc, &out);
  Put<uint32_t>(Narrow(entry.bytes), &out);
  Put<uint32_t>(Narrow(entry.bytes), &out);
  Put<uint16_t>(entry.name.size(), &out);
  Put<uint16_t>(size - zip::kLocalBytes - entry.name.size(), &out);
  out += entry.name;
  if (wide) {
    Put<uint16_t>(zip::kZip64Extra, &out);
    Put<uint16_t>(16, &out);
    Put<uint64_t>(entry.bytes, &out);
    Put<uint64_t>(entry.bytes, &out);
  }
  Put<uint16_t>(zip::kPaddingExtra, &out);
  Put<uint16_t>(padding, &out);
  out.append(padding, 'Z');
  return out;
}

std::string ZipLayout::Directory(absl::Span<const uint32_t> crcs) const {
  std::string out;
  for (size_t i = 0; i < entries_.size(); ++i) PutCentral(entries_[i], crcs[i], &out);
  PutEnd(entries_.size(), directory_begin_, out.size(), &out);
  return out;
}

}  // namespace sherd::formats
