#include "server/checkpoint_part.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "core/partition.h"
#include "runtime/clock.h"
#include "runtime/records.h"
#include "server/token_bucket.h"

namespace sherd::server {
namespace {

using formats::FilePlan;
using formats::FileSum;
using formats::StoredType;
using formats::SummedFileReader;
using formats::SummedFileWriter;
using runtime::JobMemory;

constexpr int64_t kBlockBytes = kBlockElements * 4;

// Lets the data begin at a multiple of `alignment`: spaces behind the header belong to it.
void AlignData(FilePlan* plan, uint64_t alignment) {
  std::string& head = plan->header_bytes;
  head.resize((head.size() + alignment - 1) / alignment * alignment, ' ');
  const uint64_t n = head.size() - formats::kPrefixBytes;
  for (uint64_t i = 0; i < formats::kPrefixBytes; ++i) head[i] = static_cast<char>(n >> (8 * i) & 0xff);
  plan->header.data_begin = head.size();
}

BlockRange Clip(BlockRange blocks, int64_t end) {
  return {std::min(blocks.begin, end), std::min(blocks.end, end)};
}

// Blocks behind a tensor of a part.
struct Piece {
  int plane;
  BlockRange blocks;
};

// The pieces in the order of the file.
std::vector<Piece> PiecesOf(const JobMemory& memory, const FilePlan& plan, Slot slot, int servers) {
  std::map<std::string, Piece> by_name;
  for (const UnitRange& r : OwnedRanges(memory.layout(), slot, servers)) {
    for (int p = 0; p < memory.planes(); ++p) {
      by_name[PartTensorName(memory.plane_name(p), r.unit)] = {p, Clip(r.blocks, memory.plane_blocks(p))};
    }
  }
  std::vector<Piece> pieces;
  for (const formats::TensorEntry& t : plan.header.tensors) pieces.push_back(by_name.at(t.name));
  return pieces;
}

// Waits until `bytes` may go; the snapshot stays alive meanwhile.
absl::Status WaitToWrite(TokenBucket& bucket, uint64_t bytes, SnapshotReader& reader, int64_t written,
                         const PartProgress& progress) {
  const absl::Time go = runtime::SteadyNow() + bucket.Spend(bytes);
  for (;;) {
    if (progress && !progress(written)) return absl::CancelledError("the caller of the save has gone");
    if (absl::Status s = reader.Check(); !s.ok()) return s;
    const absl::Time now = runtime::SteadyNow();
    if (now >= go) return absl::OkStatus();
    absl::SleepFor(std::min(go - now, absl::Milliseconds(100)));
  }
}

std::string BlobName(int rank) { return absl::StrCat("blob/", rank); }
std::string BufferName(const BufferSpec& b) { return absl::StrCat("buffer/", b.name); }

}  // namespace

std::vector<PartPlane> PlanesOf(const JobMemory& memory) {
  std::vector<PartPlane> planes;
  for (int p = 0; p < memory.planes(); ++p) planes.push_back({memory.plane_name(p), memory.plane_blocks(p)});
  return planes;
}

std::string PartTensorName(const std::string& plane, int unit) { return absl::StrCat(plane, "/", unit); }

absl::StatusOr<FilePlan> PlanPart(const Layout& layout, const std::vector<PartPlane>& planes, Slot slot,
                                  int servers) {
  std::vector<formats::TensorSpec> tensors;
  for (const UnitRange& r : OwnedRanges(layout, slot, servers)) {
    for (const PartPlane& plane : planes) {
      const BlockRange blocks = Clip(r.blocks, plane.blocks);
      if (blocks.empty()) continue;
      tensors.push_back(
          {PartTensorName(plane.name, r.unit), StoredType::kF32, {blocks.size() * kBlockElements}});
    }
  }
  absl::StatusOr<FilePlan> plan =
      formats::LayOut(std::move(tensors), {{"sherd_part", absl::StrCat(slot.value(), " of ", servers)}});
  if (plan.ok()) AlignData(&*plan, formats::kDirectAlignment);
  return plan;
}

absl::StatusOr<FileSum> WritePart(const JobMemory& memory, SnapshotReader& reader, Slot slot, int servers,
                                  const std::string& path, uint64_t rate, const PartProgress& progress) {
  const absl::StatusOr<FilePlan> plan = PlanPart(memory.layout(), PlanesOf(memory), slot, servers);
  if (!plan.ok()) return plan.status();
  absl::StatusOr<std::unique_ptr<SummedFileWriter>> file =
      SummedFileWriter::Create(path, static_cast<int64_t>(plan->header.file_bytes()));
  if (!file.ok()) return file.status();
  if (absl::Status s = (*file)->Append(plan->header_bytes); !s.ok()) return s;
  TokenBucket bucket(rate);
  const int64_t most = static_cast<int64_t>(bucket.Piece(formats::kSummedChunkBytes));
  int64_t written = static_cast<int64_t>(plan->header_bytes.size());
  for (const Piece& piece : PiecesOf(memory, *plan, slot, servers)) {
    for (int64_t b = piece.blocks.begin; b < piece.blocks.end;) {
      const absl::Span<char> room = (*file)->Room();
      const int64_t fit = std::min<int64_t>(room.size(), most) / kBlockBytes;
      const BlockRange now{b, std::min(b + fit, piece.blocks.end)};
      absl::Status s = WaitToWrite(bucket, now.size() * kBlockBytes, reader, written, progress);
      if (!s.ok()) return s;
      reader.ReadBlocks(piece.plane, now, room.data());
      if (s = (*file)->Advance(now.size() * kBlockBytes); !s.ok()) return s;
      written += now.size() * kBlockBytes;
      b = now.end;
    }
  }
  // What was read counts only if the snapshot was there to the end.
  if (absl::Status s = reader.Check(); !s.ok()) return s;
  return (*file)->Finish();
}

absl::StatusOr<FileSum> WriteState(const JobSpec& spec, const CheckpointState& state,
                                   const std::string& path) {
  std::vector<formats::TensorSpec> tensors;
  std::map<std::string, absl::string_view> bytes;
  for (size_t b = 0; b < spec.buffers.size(); ++b) {
    const BufferSpec& buffer = spec.buffers[b];
    const absl::StatusOr<StoredType> type = formats::StoredTypeFromName(buffer.dtype);
    if (!type.ok()) return type.status();
    tensors.push_back({BufferName(buffer), *type, buffer.shape});
    bytes[BufferName(buffer)] =
        absl::string_view(state.buffers)
            .substr(runtime::BufferOffset(spec, static_cast<int>(b)), BufferBytes(buffer));
  }
  for (size_t r = 0; r < state.blobs.size(); ++r) {
    const std::string name = BlobName(static_cast<int>(r));
    tensors.push_back({name, StoredType::kU8, {static_cast<int64_t>(state.blobs[r].size())}});
    bytes[name] = state.blobs[r];
  }
  const absl::StatusOr<FilePlan> plan = formats::LayOut(std::move(tensors), {});
  if (!plan.ok()) return plan.status();
  absl::StatusOr<std::unique_ptr<SummedFileWriter>> file =
      SummedFileWriter::Create(path, static_cast<int64_t>(plan->header.file_bytes()));
  if (!file.ok()) return file.status();
  absl::Status s = (*file)->Append(plan->header_bytes);
  for (const formats::TensorEntry& t : plan->header.tensors) {
    if (s.ok()) s = (*file)->Append(bytes.at(t.name));
  }
  if (!s.ok()) return s;
  return (*file)->Finish();
}

absl::StatusOr<CheckpointState> ReadState(const JobSpec& spec, const std::string& path, const FileSum& sum) {
  absl::StatusOr<std::unique_ptr<SummedFileReader>> file = SummedFileReader::Open(path, sum);
  if (!file.ok()) return file.status();
  const formats::DirectBuffer buffer((*file)->buffer_bytes());
  std::string whole;
  for (int64_t i = 0; i < (*file)->chunks(); ++i) {
    const absl::StatusOr<absl::Span<const char>> chunk = (*file)->Read(i, buffer);
    if (!chunk.ok()) return chunk.status();
    whole.append(chunk->data(), chunk->size());
  }
  const auto damaged = [&](absl::string_view how) {
    return absl::DataLossError(absl::StrCat(path, " is not the state of its checkpoint: ", how));
  };
  const absl::StatusOr<uint64_t> n = formats::ParseHeaderSize(whole, whole.size());
  if (!n.ok()) return damaged(n.status().message());
  const absl::StatusOr<formats::Header> header =
      formats::Parse(absl::string_view(whole).substr(formats::kPrefixBytes, *n), whole.size());
  if (!header.ok()) return damaged(header.status().message());
  CheckpointState state;
  state.buffers.resize(runtime::BufferArea(spec));
  state.blobs.resize(spec.world_size);
  for (const formats::TensorEntry& t : header->tensors) {
    absl::string_view name = t.name;
    const absl::string_view bytes = absl::string_view(whole).substr(header->data_begin + t.begin, t.bytes());
    int rank = 0;
    if (absl::ConsumePrefix(&name, "blob/")) {
      if (!absl::SimpleAtoi(name, &rank) || rank < 0 || rank >= spec.world_size) return damaged(t.name);
      state.blobs[rank] = std::string(bytes);
      continue;
    }
    if (!absl::ConsumePrefix(&name, "buffer/")) return damaged(t.name);
    const auto is = [&](const BufferSpec& b) { return b.name == name; };
    const auto it = std::find_if(spec.buffers.begin(), spec.buffers.end(), is);
    if (it == spec.buffers.end() || BufferBytes(*it) != static_cast<int64_t>(bytes.size()))
      return damaged(t.name);
    const int index = static_cast<int>(it - spec.buffers.begin());
    std::memcpy(&state.buffers[runtime::BufferOffset(spec, index)], bytes.data(), bytes.size());
  }
  return state;
}

}  // namespace sherd::server
