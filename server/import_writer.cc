#include "server/import_writer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/convert.h"
#include "runtime/crc32c.h"
#include "runtime/formats/half.h"
#include "server/tensor_stream.h"

namespace sherd::server {
namespace {

uint64_t NewId(bool by_step_record) {
  if (!by_step_record) return ImportSegment::UnnamedId();
  std::random_device random;
  return ImportSegment::kNamedByStep | (uint64_t{random()} << 31 ^ random());
}

absl::StatusOr<ImportSegment::Item> ItemFor(const runtime::JobMemory& memory,
                                            const v1::ImportManifest::Tensor& t) {
  const std::string& name = t.tensor().name();
  absl::StatusOr<ValueRef> values = FindValues(memory, name, PlaneOf(t.tensor()));
  if (!values.ok()) return values.status();
  if (values->kind == ValueRef::kBuffer) {
    return absl::InvalidArgumentError(
        absl::StrCat("buffer ", name, " cannot be written: rank 0 hands it over with each step"));
  }
  if (!std::equal(t.shape().begin(), t.shape().end(), values->shape.begin(), values->shape.end())) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", name, " has shape [",
                                                   absl::StrJoin(values->shape, ","), "] in this job but [",
                                                   absl::StrJoin(t.shape(), ","), "] was sent"));
  }
  return ImportSegment::Item{values->tensor->index, values->kind == ValueRef::kUpdateCount
                                                        ? ImportSegment::kUpdateCount
                                                        : values->plane};
}

}  // namespace

absl::StatusOr<std::unique_ptr<ImportWriter>> ImportWriter::Create(const runtime::JobMemory* memory,
                                                                   const v1::ImportManifest& manifest,
                                                                   bool whole_model, bool by_step_record) {
  if (manifest.tensors().empty())
    return absl::InvalidArgumentError("manifest.tensors is empty: nothing to write");
  std::vector<ImportSegment::Item> items;
  std::vector<Part> parts;
  std::set<std::pair<int, int>> seen;
  uint64_t at = 0;
  for (const v1::ImportManifest::Tensor& t : manifest.tensors()) {
    absl::StatusOr<ImportSegment::Item> item = ItemFor(*memory, t);
    if (!item.ok()) return item.status();
    absl::StatusOr<DType> dtype =
        DTypeFromProto(t.dtype(), absl::StrCat("tensor ", t.tensor().name(), ": dtype"));
    if (!dtype.ok()) return dtype.status();
    if (!seen.insert({item->plane, item->tensor}).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", t.tensor().name(), " comes twice in plane ", PlaneOf(t.tensor())));
    }
    items.push_back(*item);
    Part& part = parts.emplace_back();
    part.begin = at;
    part.numel =
        item->plane == ImportSegment::kUpdateCount ? 1 : memory->layout().tensors()[item->tensor].numel;
    part.dtype = *dtype;
    at += part.bytes();
  }
  for (const TensorInfo& t : memory->layout().tensors()) {
    if (!whole_model || seen.count({0, t.index}) != 0) continue;
    return absl::InvalidArgumentError(absl::StrCat("tensor ", t.spec.name, " is missing: all of the job's ",
                                                   memory->layout().tensors().size(),
                                                   " are needed, or say that the push is partial"));
  }
  const uint64_t id = NewId(by_step_record);
  absl::StatusOr<ImportSegment> segment = ImportSegment::Create(*memory, id, std::move(items));
  if (!segment.ok()) return segment.status();
  return std::unique_ptr<ImportWriter>(new ImportWriter(memory, id, std::move(parts), *std::move(segment)));
}

ImportWriter::~ImportWriter() {
  if (!kept_) ImportSegment::Remove(memory_->dir(), id_).IgnoreError();
}

absl::Status ImportWriter::Append(const v1::Chunk& chunk) {
  const std::string& data = chunk.data();
  if (chunk.offset() != at_) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk.offset=", chunk.offset(), " but byte ", at_, " comes next"));
  }
  if (data.size() > total() - at_) {
    return absl::InvalidArgumentError(
        absl::StrCat("the manifest has ", total(), " bytes but at least ", at_ + data.size(), " were sent"));
  }
  const uint32_t crc = runtime::Crc32c(data);
  if (crc != chunk.crc32c()) {
    return absl::DataLossError(absl::StrCat("chunk at byte ", at_, " has crc32c ", absl::Hex(crc), " but ",
                                            absl::Hex(chunk.crc32c()), " was stated"));
  }
  absl::string_view left = data;
  while (!left.empty()) left.remove_prefix(Take(left));
  return absl::OkStatus();
}

// Takes bytes of one part; returns how many.
size_t ImportWriter::Take(absl::string_view data) {
  while (at_ >= parts_[part_].begin + parts_[part_].bytes()) ++part_;
  const Part& part = parts_[part_];
  const uint64_t within = at_ - part.begin;
  const size_t n = std::min<uint64_t>(data.size(), part.bytes() - within);
  char* values = reinterpret_cast<char*>(segment_.Values(static_cast<int>(part_)).data());
  at_ += n;
  if (part.dtype == DType::kFloat32) {
    std::memcpy(values + within, data.data(), n);
    return n;
  }
  // 16 bits: a chunk may end in the middle of an element.
  carry_.append(data.data(), n);
  const size_t whole = carry_.size() / 2;
  std::vector<uint16_t> halves(whole);
  std::memcpy(halves.data(), carry_.data(), whole * 2);
  const uint64_t first = (at_ - carry_.size() - part.begin) / 2;
  const absl::Span<float> out = segment_.Values(static_cast<int>(part_)).subspan(first, whole);
  if (part.dtype == DType::kBFloat16) {
    formats::FloatFromBf16(halves, out);
  } else {
    formats::FloatFromFp16(halves, out);
  }
  carry_.erase(0, whole * 2);
  return n;
}

absl::Status ImportWriter::Finish() const {
  if (at_ != total()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the manifest has ", total(), " bytes but only ", at_, " were sent"));
  }
  return absl::OkStatus();
}

absl::Status ImportWriter::RenameTo(uint64_t id) {
  absl::Status renamed = ImportSegment::Rename(memory_->dir(), id_, id);
  if (renamed.ok()) kept_ = true;
  return renamed;
}

}  // namespace sherd::server
