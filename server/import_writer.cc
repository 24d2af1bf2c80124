#include "server/import_writer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/formats/half.h"
#include "server/own_blocks.h"

namespace sherd::server {
namespace {}  // namespace

absl::StatusOr<std::unique_ptr<ImportWriter>> ImportWriter::Create(const runtime::JobMemory* memory,
                                                                   const ImportPlan& plan,
                                                                   bool by_step_record) {
  std::vector<ImportSegment::Item> items;
  std::vector<Part> parts;
  uint64_t at = 0;
  for (const ImportPlan::Value& v : plan.values) {
    items.push_back(v.item);
    Part& part = parts.emplace_back();
    part.begin = at;
    part.dtype = v.dtype;
    part.elements = {0, v.numel};
    if (v.item.plane != ImportSegment::kUpdateCount)
      part.elements = ElementsOn(memory->place().index, *memory, memory->layout().tensors()[v.item.tensor]);
    at += part.bytes();
  }
  const uint64_t id = by_step_record ? ImportSegment::IdForStep() : ImportSegment::UnnamedId();
  absl::StatusOr<ImportSegment> segment = ImportSegment::Create(*memory, id, std::move(items));
  if (!segment.ok()) return segment.status();
  return std::unique_ptr<ImportWriter>(new ImportWriter(memory, id, std::move(parts), *std::move(segment)));
}

ImportWriter::~ImportWriter() {
  if (!kept_) ImportSegment::Remove(memory_->dir(), id_).IgnoreError();
}

absl::Status ImportWriter::Append(const v1::Chunk& chunk) {
  if (absl::Status s = CheckChunk(chunk, at_, total()); !s.ok()) return s;
  Take(chunk.data());
  return absl::OkStatus();
}

void ImportWriter::Take(absl::string_view data) {
  while (!data.empty()) data.remove_prefix(TakeOfPart(data));
}

size_t ImportWriter::TakeOfPart(absl::string_view data) {
  while (at_ >= parts_[part_].begin + parts_[part_].bytes()) ++part_;
  const Part& part = parts_[part_];
  const uint64_t within = at_ - part.begin;
  const size_t n = std::min<uint64_t>(data.size(), part.bytes() - within);
  const absl::Span<float> own = segment_.Values(static_cast<int>(part_))
                                    .subspan(part.elements.first, part.elements.second - part.elements.first);
  at_ += n;
  if (part.dtype == DType::kFloat32) {
    std::memcpy(reinterpret_cast<char*>(own.data()) + within, data.data(), n);
    return n;
  }
  // 16 bits: a chunk may end in the middle of an element.
  carry_.append(data.data(), n);
  const size_t whole = carry_.size() / 2;
  std::vector<uint16_t> halves(whole);
  std::memcpy(halves.data(), carry_.data(), whole * 2);
  const uint64_t first = (at_ - carry_.size() - part.begin) / 2;
  const absl::Span<float> out = own.subspan(first, whole);
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

}  // namespace sherd::server
