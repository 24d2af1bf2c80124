#include "server/import_plan.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/convert.h"
#include "runtime/crc32c.h"
#include "server/own_blocks.h"
#include "server/tensor_stream.h"

namespace sherd::server {
namespace {

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

absl::StatusOr<ImportPlan> PlanImport(const runtime::JobMemory& memory, const v1::ImportManifest& manifest,
                                      bool whole_model) {
  if (manifest.tensors().empty())
    return absl::InvalidArgumentError("manifest.tensors is empty: nothing to write");
  ImportPlan plan;
  std::set<std::pair<int, int>> seen;
  for (const v1::ImportManifest::Tensor& t : manifest.tensors()) {
    absl::StatusOr<ImportSegment::Item> item = ItemFor(memory, t);
    if (!item.ok()) return item.status();
    absl::StatusOr<DType> dtype =
        DTypeFromProto(t.dtype(), absl::StrCat("tensor ", t.tensor().name(), ": dtype"));
    if (!dtype.ok()) return dtype.status();
    if (!seen.insert({item->plane, item->tensor}).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", t.tensor().name(), " comes twice in plane ", PlaneOf(t.tensor())));
    }
    const bool count = item->plane == ImportSegment::kUpdateCount;
    plan.values.push_back({*item, *dtype, count ? 1 : memory.layout().tensors()[item->tensor].numel});
  }
  for (const TensorInfo& t : memory.layout().tensors()) {
    if (!whole_model || seen.count({0, t.index}) != 0) continue;
    return absl::InvalidArgumentError(absl::StrCat("tensor ", t.spec.name, " is missing: all of the job's ",
                                                   memory.layout().tensors().size(),
                                                   " are needed, or say that the push is partial"));
  }
  return plan;
}

absl::Status CheckChunk(const v1::Chunk& chunk, uint64_t at, uint64_t total) {
  const std::string& data = chunk.data();
  if (chunk.offset() != at) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk.offset=", chunk.offset(), " but byte ", at, " comes next"));
  }
  if (data.size() > total - at) {
    return absl::InvalidArgumentError(
        absl::StrCat("the manifest has ", total, " bytes but at least ", at + data.size(), " were sent"));
  }
  const uint32_t crc = runtime::Crc32c(data);
  if (crc != chunk.crc32c()) {
    return absl::DataLossError(absl::StrCat("chunk at byte ", at, " has crc32c ", absl::Hex(crc), " but ",
                                            absl::Hex(chunk.crc32c()), " was stated"));
  }
  return absl::OkStatus();
}

std::vector<ImportRun> RunsOf(const ImportPlan& plan, const runtime::JobMemory& memory) {
  std::vector<ImportRun> runs;
  const auto add = [&](int host, int64_t elements, DType dtype) {
    if (elements == 0) return;
    const auto bytes = static_cast<uint64_t>(elements * SizeOf(dtype));
    if (!runs.empty() && runs.back().host == host) {
      runs.back().bytes += bytes;
    } else {
      runs.push_back({host, bytes});
    }
  };
  for (const ImportPlan::Value& v : plan.values) {
    if (v.item.plane == ImportSegment::kUpdateCount) {
      add(ImportRun::kAllHosts, 1, v.dtype);
      continue;
    }
    for (int h = 0; h < memory.grid().group; ++h) {
      const auto [begin, end] = ElementsOn(h, memory, memory.layout().tensors()[v.item.tensor]);
      add(h, end - begin, v.dtype);
    }
  }
  return runs;
}

}  // namespace sherd::server
