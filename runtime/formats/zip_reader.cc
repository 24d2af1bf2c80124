#include "runtime/formats/zip_reader.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/formats/atomic_file.h"
#include "runtime/formats/crc32.h"
#include "runtime/formats/strict_json.h"
#include "runtime/formats/zip_records.h"

namespace sherd::formats {

using zip::Get;

// An entry as the directory has it.
struct ZipReader::Found {
  std::string name;
  uint64_t header_begin = 0;
  uint64_t bytes = 0;
  uint32_t crc = 0;
  uint16_t flags = 0;
};

namespace {

// The 64-bit values of an extra field's zip64 record, in their fixed order; the fields that fit are left out.
// Unreadable extra fields, and a record that comes twice or is too short, yield false.
bool ReadZip64(absl::string_view extra, bool wide_size, bool wide_packed, bool wide_offset, uint64_t* size,
               uint64_t* packed, uint64_t* offset) {
  bool found = false;
  while (!extra.empty()) {
    if (extra.size() < 4) return false;
    const auto id = Get<uint16_t>(extra, 0);
    const size_t bytes = Get<uint16_t>(extra, 2);
    if (bytes > extra.size() - 4) return false;
    absl::string_view body = extra.substr(4, bytes);
    extra.remove_prefix(4 + bytes);
    if (id != zip::kZip64Extra) continue;
    if (found) return false;
    found = true;
    const auto take = [&](bool wanted, uint64_t* out) {
      if (!wanted) return true;
      if (body.size() < 8) return false;
      *out = Get<uint64_t>(body, 0);
      body.remove_prefix(8);
      return true;
    };
    if (!take(wide_size, size) || !take(wide_packed, packed) || !take(wide_offset, offset)) return false;
  }
  return found || !(wide_size || wide_packed || wide_offset);
}

}  // namespace

absl::Status ZipReader::Bad(absl::string_view why) const {
  return absl::InvalidArgumentError(absl::StrCat(path_, ": ", why));
}

absl::StatusOr<std::unique_ptr<ZipReader>> ZipReader::Open(const std::string& path) {
  uint64_t bytes = 0;
  absl::StatusOr<runtime::UniqueFd> fd = OpenRegular(path, &bytes);
  if (!fd.ok()) return fd.status();
  std::unique_ptr<ZipReader> reader(new ZipReader(path, *std::move(fd)));
  if (absl::Status status = reader->Load(bytes); !status.ok()) return status;
  return reader;
}

absl::Status ZipReader::Load(uint64_t file_bytes) {
  absl::StatusOr<Directory> directory = FindDirectory(file_bytes);
  if (!directory.ok()) return directory.status();
  absl::StatusOr<std::vector<Found>> found = ReadDirectory(*directory);
  if (!found.ok()) return found.status();
  std::sort(found->begin(), found->end(),
            [](const Found& a, const Found& b) { return a.header_begin < b.header_begin; });
  entries_.resize(found->size());
  for (size_t i = 0; i < found->size(); ++i) {
    const uint64_t limit = i + 1 < found->size() ? (*found)[i + 1].header_begin : directory->begin;
    if (absl::Status status = CheckLocal((*found)[i], limit, &entries_[i]); !status.ok()) return status;
  }
  by_name_.reserve(entries_.size());
  for (size_t i = 0; i < entries_.size(); ++i) {
    if (by_name_.emplace(entries_[i].name, i).second) continue;
    return Bad(absl::StrCat("zip entry ", Quoted(entries_[i].name), " is there twice"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ZipReader::Directory> ZipReader::FindDirectory(uint64_t file_bytes) const {
  if (file_bytes < zip::kEndBytes) return Bad("no zip file: too short");
  const uint64_t end_begin = file_bytes - zip::kEndBytes;
  std::string end(zip::kEndBytes, '\0');
  if (absl::Status s = ReadExactly(fd_.get(), path_, end_begin, absl::MakeSpan(&end[0], end.size())); !s.ok())
    return s;
  if (Get<uint32_t>(end, 0) != zip::kEndMark || Get<uint16_t>(end, 20) != 0) {
    return Bad("no zip file, cut short, or something stands behind its directory");
  }
  Directory directory;
  directory.entries = Get<uint16_t>(end, 10);
  directory.bytes = Get<uint32_t>(end, 12);
  directory.begin = Get<uint32_t>(end, 16);
  if (Get<uint16_t>(end, 4) != Get<uint16_t>(end, 6) || Get<uint16_t>(end, 8) != directory.entries) {
    return Bad("a zip file of several volumes");
  }
  return FindWide(directory, end_begin);
}

// Takes the 64-bit end record if there is one, and checks that the directory ends where the end begins.
absl::StatusOr<ZipReader::Directory> ZipReader::FindWide(Directory directory, uint64_t end_begin) const {
  uint64_t behind = end_begin;
  std::string wide(zip::kEnd64Bytes + zip::kLocatorBytes, '\0');
  bool has_wide = false;
  if (end_begin >= wide.size()) {
    absl::Status read =
        ReadExactly(fd_.get(), path_, end_begin - wide.size(), absl::MakeSpan(&wide[0], wide.size()));
    if (!read.ok()) return read;
    has_wide = Get<uint32_t>(wide, zip::kEnd64Bytes) == zip::kLocatorMark;
  }
  if (has_wide) {
    behind = end_begin - wide.size();
    if (Get<uint64_t>(wide, zip::kEnd64Bytes + 8) != behind || Get<uint32_t>(wide, 0) != zip::kEnd64Mark ||
        Get<uint64_t>(wide, 4) != zip::kEnd64Bytes - 12) {
      return Bad("the zip64 end of the directory is malformed");
    }
    const Directory narrow = directory;
    directory.entries = Get<uint64_t>(wide, 32);
    directory.bytes = Get<uint64_t>(wide, 40);
    directory.begin = Get<uint64_t>(wide, 48);
    if (Get<uint64_t>(wide, 24) != directory.entries ||
        (narrow.entries != zip::kFull16 && narrow.entries != directory.entries) ||
        (narrow.bytes != zip::kFull32 && narrow.bytes != directory.bytes) ||
        (narrow.begin != zip::kFull32 && narrow.begin != directory.begin)) {
      return Bad("the two ends of the zip directory contradict each other");
    }
  }
  if (directory.begin > behind || directory.bytes != behind - directory.begin) {
    return Bad(absl::StrCat("the zip directory (", directory.bytes, " bytes at ", directory.begin,
                            ") does not end where its end record begins, at ", behind));
  }
  if (directory.bytes > kMaxDirectoryBytes) {
    return Bad(absl::StrCat("a zip directory of ", directory.bytes, " bytes; ", kMaxDirectoryBytes,
                            " are the most that are read"));
  }
  return directory;
}

absl::StatusOr<std::vector<ZipReader::Found>> ZipReader::ReadDirectory(const Directory& directory) const {
  std::string bytes(directory.bytes, '\0');
  absl::Status read = ReadExactly(fd_.get(), path_, directory.begin, absl::MakeSpan(&bytes[0], bytes.size()));
  if (!read.ok()) return read;
  std::vector<Found> all;
  absl::string_view left = bytes;
  while (!left.empty()) {
    if (left.size() < zip::kCentralBytes || Get<uint32_t>(left, 0) != zip::kCentralMark) {
      return Bad(absl::StrCat("entry ", all.size(), " of the zip directory is malformed"));
    }
    const size_t name = Get<uint16_t>(left, 28), extra = Get<uint16_t>(left, 30);
    const size_t comment = Get<uint16_t>(left, 32), size = zip::kCentralBytes + name + extra + comment;
    if (size > left.size())
      return Bad(absl::StrCat("entry ", all.size(), " passes the end of the zip directory"));
    Found& found = all.emplace_back();
    found.name = std::string(left.substr(zip::kCentralBytes, name));
    const std::string shown = absl::StrCat("zip entry ", Quoted(found.name));
    found.flags = Get<uint16_t>(left, 8);
    if (found.flags & (zip::kEncrypted | zip::kStrongEncryption | zip::kMaskedHeaders)) {
      return Bad(absl::StrCat(shown, " is encrypted"));
    }
    const auto method = Get<uint16_t>(left, 10);
    if (method != 0) {
      return Bad(
          absl::StrCat(shown, " is compressed (method ", method, "); entries must be stored as they are"));
    }
    found.crc = Get<uint32_t>(left, 16);
    uint64_t packed = Get<uint32_t>(left, 20);
    found.bytes = Get<uint32_t>(left, 24);
    found.header_begin = Get<uint32_t>(left, 42);
    if (Get<uint16_t>(left, 34) != 0 || found.name.empty() || found.name.find('\0') != std::string::npos ||
        !ReadZip64(left.substr(zip::kCentralBytes + name, extra), found.bytes == zip::kFull32,
                   packed == zip::kFull32, found.header_begin == zip::kFull32, &found.bytes, &packed,
                   &found.header_begin) ||
        packed != found.bytes) {
      return Bad(absl::StrCat(shown, " is malformed in the zip directory"));
    }
    left.remove_prefix(size);
  }
  if (all.size() != directory.entries) {
    return Bad(
        absl::StrCat("the zip directory states ", directory.entries, " entries and holds ", all.size()));
  }
  return all;
}

// `limit`: where the next header, or the directory, begins.
absl::Status ZipReader::CheckLocal(const Found& found, uint64_t limit, Entry* out) const {
  const std::string shown = absl::StrCat("zip entry ", Quoted(found.name));
  std::string header(zip::kLocalBytes + found.name.size(), '\0');
  if (found.header_begin > limit || limit - found.header_begin < header.size()) {
    return Bad(absl::StrCat(shown, " overlaps another, or the directory"));
  }
  absl::Status read =
      ReadExactly(fd_.get(), path_, found.header_begin, absl::MakeSpan(&header[0], header.size()));
  if (!read.ok()) return read;
  const uint64_t room = limit - found.header_begin - header.size();
  const uint64_t extra_bytes = Get<uint16_t>(header, 28);
  if (Get<uint32_t>(header, 0) != zip::kLocalMark || Get<uint16_t>(header, 6) != found.flags ||
      Get<uint16_t>(header, 8) != 0 || Get<uint16_t>(header, 26) != found.name.size() ||
      absl::string_view(header).substr(zip::kLocalBytes) != found.name) {
    return Bad(absl::StrCat(shown, ": its own header contradicts the directory"));
  }
  if (extra_bytes > room || found.bytes > room - extra_bytes) {
    return Bad(absl::StrCat(shown, " of ", found.bytes, " bytes overlaps what follows it"));
  }
  if ((found.flags & zip::kSizesFollow) == 0) {
    std::string extra(extra_bytes, '\0');
    read = ReadExactly(fd_.get(), path_, found.header_begin + header.size(),
                       absl::MakeSpan(&extra[0], extra.size()));
    if (!read.ok()) return read;
    uint64_t packed = Get<uint32_t>(header, 18), bytes = Get<uint32_t>(header, 22), none = 0;
    if (!ReadZip64(extra, bytes == zip::kFull32, packed == zip::kFull32, false, &bytes, &packed, &none) ||
        bytes != found.bytes || packed != found.bytes || Get<uint32_t>(header, 14) != found.crc) {
      return Bad(absl::StrCat(shown, ": size or checksum in its own header contradict the directory"));
    }
  }
  *out = {found.name, found.header_begin + header.size() + extra_bytes, found.bytes, found.crc};
  return absl::OkStatus();
}

const ZipReader::Entry* ZipReader::Find(absl::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &entries_[it->second];
}

absl::Status ZipReader::Read(const Entry& entry, uint64_t offset, absl::Span<char> out) const {
  if (offset > entry.bytes || out.size() > entry.bytes - offset) {
    return absl::OutOfRangeError(absl::StrCat(path_, ": ", out.size(), " bytes at ", offset,
                                              " pass the end of zip entry ", Quoted(entry.name), " of ",
                                              entry.bytes, " bytes"));
  }
  return ReadExactly(fd_.get(), path_, entry.data_begin + offset, out);
}

absl::StatusOr<std::string> ZipReader::ReadEntry(const Entry& entry, uint64_t max_bytes) const {
  if (entry.bytes > max_bytes) {
    return absl::OutOfRangeError(absl::StrCat(path_, ": zip entry ", Quoted(entry.name), " has ", entry.bytes,
                                              " bytes; ", max_bytes, " are the most that are read"));
  }
  std::string bytes(entry.bytes, '\0');
  if (absl::Status s = Read(entry, 0, absl::MakeSpan(&bytes[0], bytes.size())); !s.ok()) return s;
  if (ExtendCrc32(0, bytes) != entry.crc) {
    return absl::DataLossError(
        absl::StrCat(path_, ": zip entry ", Quoted(entry.name), " does not match its checksum"));
  }
  return bytes;
}

}  // namespace sherd::formats
