// A list of tensors as one stream of bytes, which can be produced from any offset: what Pull and ReadTensor
// send.
//
//   TensorStream stream(reader.get());
//   stream.Add(*FindValues(memory, "wte", "param"), DType::kFloat32);
//   absl::Status s = stream.Fill(offset, absl::MakeSpan(buffer));
//
// Row-major, little-endian, no padding between tensors. Thread-compatible: one consumer each.
#ifndef SHERD_SERVER_TENSOR_STREAM_H_
#define SHERD_SERVER_TENSOR_STREAM_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "core/slice.h"
#include "core/types.h"
#include "runtime/job_memory.h"
#include "server/snapshot_reader.h"

namespace sherd::server {

// Where values named by a peer stand.
struct ValueRef {
  enum Kind { kPlane, kUpdateCount, kBuffer } kind = kPlane;
  const TensorInfo* tensor = nullptr;  // not for kBuffer
  int plane = 0;                       // kPlane: JobMemory's index
  std::vector<int64_t> shape;          // of the whole
  std::string dtype;                   // as safetensors names it: F32 for kPlane and kUpdateCount
  int64_t buffer_offset = 0;           // kBuffer: bytes in the buffer area
};

// The plane called `name` of this job, -1 for "step" and -2 for "buffer"; nullopt if there is none.
inline constexpr int kStepPlane = -1;
inline constexpr int kBufferPlane = -2;
std::optional<int> FindPlane(const runtime::JobMemory& memory, absl::string_view name);

// Finds values by names: plane "param", an optimizer's plane, "step" (one fp32 number: updates of the tensor
// so far), or "buffer". NOT_FOUND says whether the plane or the tensor is unknown, or that the tensor is
// frozen and has no such plane.
absl::StatusOr<ValueRef> FindValues(const runtime::JobMemory& memory, absl::string_view name,
                                    absl::string_view plane);

class TensorStream {
 public:
  // Both are borrowed.
  TensorStream(const runtime::JobMemory* memory, SnapshotReader* reader) : memory_(memory), reader_(reader) {}

  // Appends values. `dtype`: of the bytes, for kPlane; others keep their own. NOT_FOUND: the snapshot lacks
  // the plane.
  absl::Status Add(const ValueRef& values, DType dtype);
  absl::Status Add(const ValueRef& values, const Slice& slice, DType dtype);

  uint64_t bytes() const { return items_.empty() ? 0 : items_.back().begin + items_.back().bytes; }

  // Bytes [offset, offset + out.size()) of the stream. REQUIRES: within bytes(). The result holds only if the
  // reader's Check() is OK afterwards, which this asks: NOT_FOUND, RESOURCE_EXHAUSTED.
  absl::Status Fill(uint64_t offset, absl::Span<char> out);

 private:
  struct Item {
    ValueRef values;
    Slice slice = Slice::Whole({});
    DType dtype = DType::kFloat32;
    uint64_t begin = 0;
    uint64_t bytes = 0;
  };
  void FillItem(const Item& item, uint64_t offset, absl::Span<char> out);
  void FillElements(const Item& item, int64_t first, int64_t count, char* out);
  void ReadFloats(const Item& item, int64_t first, int64_t count, char* out) const;

  const runtime::JobMemory* const memory_;
  SnapshotReader* const reader_;
  std::vector<Item> items_;
  std::vector<float> scratch_;
  std::vector<uint16_t> halves_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_TENSOR_STREAM_H_
