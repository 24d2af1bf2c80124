// A list of tensors as one stream of bytes, which can be produced from any offset: what Pull and ReadTensor
// send.
//
//   TensorStream stream(&memory, reader.get());
//   stream.Add(*FindValues(memory, "wte", "param"), DType::kFloat32);
//   absl::Status s = stream.Fill(offset, absl::MakeSpan(buffer));
//
// Row-major, little-endian, no padding between tensors. In a job of several hosts what others own of the
// values comes from them (OtherShares), and each of them answers with TensorStream::OwnShare: the same values
// without what it does not own. Thread-compatible: one consumer each.
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

// What other hosts own of a stream's values: for each host one stream of bytes, its share.
class OtherShares {
 public:
  virtual ~OtherShares() = default;
  // The host will be asked for its share from byte `offset` on, in order: it may begin to send.
  virtual void Begin(int host, uint64_t offset) = 0;
  // Bytes [offset, offset + out.size()) of a host's share. UNAVAILABLE names the host: try again later.
  virtual absl::Status Read(int host, uint64_t offset, absl::Span<char> out) = 0;
  // To be called now and then: keeps the snapshot on all of the hosts, also on those that nothing is read of.
  virtual absl::Status KeepAlive() = 0;
};

class TensorStream {
 public:
  // All are borrowed. `others` may be null in a job of one host.
  TensorStream(const runtime::JobMemory* memory, SnapshotReader* reader, OtherShares* others = nullptr)
      : TensorStream(memory, reader, others, /*own_share=*/false) {}
  // What this host owns of the values alone: planes only.
  static TensorStream OwnShare(const runtime::JobMemory* memory, SnapshotReader* reader) {
    return TensorStream(memory, reader, nullptr, /*own_share=*/true);
  }

  // Appends values. `dtype`: of the bytes, for kPlane; others keep their own. NOT_FOUND: the snapshot lacks
  // the plane.
  absl::Status Add(const ValueRef& values, DType dtype);
  absl::Status Add(const ValueRef& values, const Slice& slice, DType dtype);

  uint64_t bytes() const { return bytes_; }

  // Bytes [offset, offset + out.size()) of the stream, best in order. REQUIRES: within bytes(). The result
  // holds only if the reader's Check() is OK afterwards, which this asks: NOT_FOUND, RESOURCE_EXHAUSTED.
  // Others are those of OtherShares.
  absl::Status Fill(uint64_t offset, absl::Span<char> out);

  // The same bytes where they lie in the job's memory, if they lie there in a row, as they are to be; else
  // data is null. What is read there holds only if the reader's IsLive(blocks) is true afterwards.
  struct Live {
    const char* data = nullptr;
    BlockRange blocks;
  };
  Live FindLive(uint64_t offset, uint64_t size) const;

 private:
  struct Item {
    ValueRef values;
    Slice slice = Slice::Whole({});
    DType dtype = DType::kFloat32;
    int64_t element_bytes = 4;
  };
  // Elements of an item that one host owns; at most one for each host.
  struct Piece {
    size_t item = 0;
    int64_t first = 0;  // of the item's elements
    int host = 0;
    uint64_t begin = 0, bytes = 0;  // in the stream
    uint64_t share_begin = 0;       // in the host's share
  };
  TensorStream(const runtime::JobMemory* memory, SnapshotReader* reader, OtherShares* others, bool own_share)
      : memory_(memory),
        reader_(reader),
        others_(others),
        own_share_(own_share),
        share_bytes_(memory->place().count, 0) {}
  // The first piece that ends after `offset`.
  std::vector<Piece>::const_iterator PieceAt(uint64_t offset) const;
  void AddPiece(int64_t first, int64_t count, int host);
  // How many of the slice's elements lie before a block.
  static int64_t ElementsBefore(const Item& item, int64_t block);
  void BeginOthers(uint64_t offset);
  absl::Status FillPiece(const Piece& piece, uint64_t within, absl::Span<char> out);
  void FillItem(const Item& item, uint64_t offset, absl::Span<char> out);
  void FillElements(const Item& item, int64_t first, int64_t count, char* out);
  void ReadFloats(const Item& item, int64_t first, int64_t count, char* out) const;

  const runtime::JobMemory* const memory_;
  SnapshotReader* const reader_;
  OtherShares* const others_;
  const bool own_share_;
  std::vector<Item> items_;
  std::vector<Piece> pieces_;
  uint64_t bytes_ = 0;
  std::vector<uint64_t> share_bytes_;  // by host, of the pieces so far
  bool others_begun_ = false;
  std::vector<float> scratch_;
  std::vector<uint16_t> halves_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_TENSOR_STREAM_H_
