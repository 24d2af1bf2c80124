#include "server/tensor_stream.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/host_map.h"
#include "core/job_spec.h"
#include "runtime/formats/half.h"

namespace sherd::server {
namespace {

// Elements converted at a time: stays in the first-level caches.
constexpr int64_t kPiece = 4096;

absl::Status NoSuchPlane(const runtime::JobMemory& memory, absl::string_view plane) {
  std::vector<std::string> names = memory.spec().PlaneNames();
  return absl::NotFoundError(absl::StrCat("there is no plane \"", plane, "\": this job has ",
                                          absl::StrJoin(names, ", "), ", step and buffer"));
}

}  // namespace

std::optional<int> FindPlane(const runtime::JobMemory& memory, absl::string_view name) {
  if (name == "step") return kStepPlane;
  if (name == "buffer") return kBufferPlane;
  for (int p = 0; p < memory.planes(); ++p) {
    if (memory.plane_name(p) == name) return p;
  }
  return std::nullopt;
}

absl::StatusOr<ValueRef> FindValues(const runtime::JobMemory& memory, absl::string_view name,
                                    absl::string_view plane) {
  const std::optional<int> p = FindPlane(memory, plane);
  if (!p.has_value()) return NoSuchPlane(memory, plane);
  ValueRef ref;
  if (*p == kBufferPlane) {
    const std::vector<BufferSpec>& buffers = memory.spec().buffers;
    for (size_t i = 0; i < buffers.size(); ++i) {
      if (buffers[i].name != name) continue;
      ref.kind = ValueRef::kBuffer;
      ref.shape = buffers[i].shape;
      ref.dtype = buffers[i].dtype;
      ref.buffer_offset = runtime::BufferOffset(memory.spec(), static_cast<int>(i));
      return ref;
    }
    return absl::NotFoundError(absl::StrCat("there is no buffer \"", name, "\""));
  }
  ref.tensor = memory.layout().Find(name);
  if (ref.tensor == nullptr) return absl::NotFoundError(absl::StrCat("there is no tensor \"", name, "\""));
  if (*p != 0 && !ref.tensor->spec.trainable) {
    return absl::NotFoundError(absl::StrCat("tensor ", name, " is frozen: it has no plane \"", plane, "\""));
  }
  ref.dtype = "F32";
  if (*p == kStepPlane) {
    ref.kind = ValueRef::kUpdateCount;
  } else {
    ref.plane = *p;
    ref.shape = ref.tensor->spec.shape;
  }
  return ref;
}

absl::Status TensorStream::Add(const ValueRef& values, DType dtype) {
  return Add(values, Slice::Whole(values.shape), dtype);
}

absl::Status TensorStream::Add(const ValueRef& values, const Slice& slice, DType dtype) {
  if (values.kind == ValueRef::kPlane && !reader_->HasPlane(values.plane)) {
    return absl::NotFoundError(absl::StrCat("snapshot ", reader_->id(), " does not hold plane \"",
                                            memory_->plane_name(values.plane),
                                            "\": name it when the snapshot is taken"));
  }
  const int64_t element = values.kind == ValueRef::kPlane ? SizeOf(dtype) : BufferElementBytes(values.dtype);
  items_.push_back({values, slice, dtype, element});
  const runtime::HostPlace& place = memory_->place();
  if (!place.several() || values.kind != ValueRef::kPlane) {
    AddPiece(0, slice.numel(), place.index);
    return absl::OkStatus();
  }
  // A host owns a stretch of blocks of each unit, and a slice's elements are in the order of the tensor's.
  const BlockRange unit = memory_->layout().units()[values.tensor->unit].blocks;
  int64_t first = 0;
  const HostGrid grid = memory_->grid();
  for (int i = 0; i < grid.group; ++i) {
    const int64_t end =
        i + 1 == grid.group ? slice.numel() : ElementsBefore(items_.back(), HostShare(unit, i, grid).end);
    AddPiece(first, end - first, grid.Counterpart(i, place.index));
    first = end;
  }
  return absl::OkStatus();
}

void TensorStream::AddPiece(int64_t first, int64_t count, int host) {
  if (count <= 0 || (own_share_ && host != memory_->place().index)) return;
  const uint64_t bytes = static_cast<uint64_t>(count * items_.back().element_bytes);
  pieces_.push_back({items_.size() - 1, first, host, bytes_, bytes, share_bytes_[host]});
  bytes_ += bytes;
  share_bytes_[host] += bytes;
}

int64_t TensorStream::ElementsBefore(const Item& item, int64_t block) {
  const int64_t limit = (block - item.values.tensor->blocks.begin) * kBlockElements;
  int64_t low = 0, high = item.slice.numel();
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    int64_t element = 0;
    item.slice.ForEachRun(middle, middle + 1, [&](int64_t at, int64_t, int64_t) { element = at; });
    if (element < limit) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// All other hosts send at once, while this one reads its own.
void TensorStream::BeginOthers(uint64_t offset) {
  std::vector<bool> begun(share_bytes_.size(), false);
  begun[memory_->place().index] = true;
  for (const Piece& piece : pieces_) {
    if (begun[piece.host] || piece.begin + piece.bytes <= offset) continue;
    begun[piece.host] = true;
    others_->Begin(piece.host, piece.share_begin + (offset > piece.begin ? offset - piece.begin : 0));
  }
}

std::vector<TensorStream::Piece>::const_iterator TensorStream::PieceAt(uint64_t offset) const {
  return std::partition_point(pieces_.begin(), pieces_.end(),
                              [&](const Piece& p) { return p.begin + p.bytes <= offset; });
}

TensorStream::Live TensorStream::FindLive(uint64_t offset, uint64_t size) const {
  if (others_ != nullptr) return {};  // Fill keeps the snapshot on their hosts
  const Piece& piece = *PieceAt(offset);
  const Item& item = items_[piece.item];
  const uint64_t within = offset - piece.begin;
  if (item.values.kind != ValueRef::kPlane || item.dtype != DType::kFloat32 ||
      piece.host != memory_->place().index || size > piece.bytes - within || within % 4 != 0 || size % 4 != 0)
    return {};
  const int64_t first = piece.first + static_cast<int64_t>(within / 4),
                count = static_cast<int64_t>(size / 4);
  Live live;
  item.slice.ForEachRun(first, first + count, [&](int64_t from, int64_t n, int64_t stride) {
    if (n != count || stride != 1) return;
    const TensorInfo& tensor = *item.values.tensor;
    live.data = reader_->Live(tensor, item.values.plane, from);
    live.blocks.begin = tensor.blocks.begin + from / kBlockElements;
    live.blocks.end = tensor.blocks.begin + (from + n - 1) / kBlockElements + 1;
  });
  return live;
}

absl::Status TensorStream::Fill(uint64_t offset, absl::Span<char> out) {
  if (others_ != nullptr && !others_begun_) BeginOthers(offset);
  others_begun_ = true;
  auto piece = PieceAt(offset);
  while (!out.empty()) {
    const uint64_t within = offset - piece->begin;
    const size_t n = std::min<uint64_t>(out.size(), piece->bytes - within);
    if (absl::Status s = FillPiece(*piece, within, out.first(n)); !s.ok()) return s;
    out.remove_prefix(n);
    offset += n;
    ++piece;
  }
  if (others_ != nullptr) {
    if (absl::Status s = others_->KeepAlive(); !s.ok()) return s;
  }
  return reader_->Check();
}

absl::Status TensorStream::FillPiece(const Piece& piece, uint64_t within, absl::Span<char> out) {
  if (piece.host != memory_->place().index) {
    return others_->Read(piece.host, piece.share_begin + within, out);
  }
  const Item& item = items_[piece.item];
  FillItem(item, static_cast<uint64_t>(piece.first * item.element_bytes) + within, out);
  return absl::OkStatus();
}

void TensorStream::FillItem(const Item& item, uint64_t offset, absl::Span<char> out) {
  if (out.empty()) return;
  const int64_t element = item.element_bytes;
  const auto part = [&](int64_t index, int64_t skip, size_t n) {  // some bytes of one element
    char whole[8];
    FillElements(item, index, 1, whole);
    std::memcpy(out.data(), whole + skip, n);
    out.remove_prefix(n);
  };
  int64_t first = static_cast<int64_t>(offset) / element;
  if (const int64_t skip = static_cast<int64_t>(offset) % element; skip != 0) {
    part(first++, skip, std::min<size_t>(element - skip, out.size()));
  }
  const int64_t count = static_cast<int64_t>(out.size()) / element;
  FillElements(item, first, count, out.data());
  out.remove_prefix(count * element);
  if (!out.empty()) part(first + count, 0, out.size());
}

void TensorStream::FillElements(const Item& item, int64_t first, int64_t count, char* out) {
  if (item.values.kind != ValueRef::kPlane || item.dtype == DType::kFloat32)
    return ReadFloats(item, first, count, out);
  scratch_.resize(kPiece);
  halves_.resize(kPiece);
  for (const int64_t end = first + count; first < end; first += kPiece) {
    const size_t n = std::min(kPiece, end - first);
    ReadFloats(item, first, n, reinterpret_cast<char*>(scratch_.data()));
    const absl::Span<const float> from(scratch_.data(), n);
    if (item.dtype == DType::kBFloat16) {
      formats::Bf16FromFloat(from, absl::MakeSpan(halves_.data(), n));
    } else {
      formats::Fp16FromFloat(from, absl::MakeSpan(halves_.data(), n));
    }
    std::memcpy(out, halves_.data(), n * 2);
    out += n * 2;
  }
}

void TensorStream::ReadFloats(const Item& item, int64_t first, int64_t count, char* out) const {
  const ValueRef& v = item.values;
  if (v.kind == ValueRef::kUpdateCount) {
    const float updates = static_cast<float>(reader_->UpdateCount(v.tensor->index));
    if (count > 0) std::memcpy(out, &updates, 4);
    return;
  }
  const int64_t element = v.kind == ValueRef::kBuffer ? BufferElementBytes(v.dtype) : 4;
  const auto copy = [&](int64_t from, int64_t n) {
    if (v.kind == ValueRef::kBuffer) {
      std::memcpy(out, reader_->buffers().data() + v.buffer_offset + from * element, n * element);
    } else {
      reader_->Read(*v.tensor, v.plane, from, n, out);
    }
    out += n * element;
  };
  item.slice.ForEachRun(first, first + count, [&](int64_t from, int64_t n, int64_t stride) {
    if (stride == 1) return copy(from, n);
    for (int64_t i = 0; i < n; ++i) copy(from + i * stride, 1);
  });
}

}  // namespace sherd::server
