#include "server/chunk_frame.h"

#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "google/protobuf/io/coded_stream.h"
#include "grpcpp/support/slice.h"
#include "runtime/mutex.h"

namespace sherd::server {
namespace {

using google::protobuf::io::CodedOutputStream;

// Room before the data for the other fields, in the order offset, crc32c, data: 1 + 10, 1 + 4, 1 + 5 bytes at
// most. The data stays aligned.
constexpr size_t kHeaderRoom = 64;

// Tags of proto/sherd/v1/common.proto's Chunk: number << 3 | wire type.
constexpr uint32_t kOffsetTag = 1 << 3 | 0;  // varint
constexpr uint32_t kDataTag = 2 << 3 | 2;    // length-delimited
constexpr uint32_t kCrcTag = 3 << 3 | 5;     // 32 bits

// The fields in front of n bytes of data; returns their end.
uint8_t* PutHeader(uint64_t offset, size_t n, uint32_t crc, uint8_t* at) {
  at = CodedOutputStream::WriteTagToArray(kOffsetTag, at);
  at = CodedOutputStream::WriteVarint64ToArray(offset, at);
  at = CodedOutputStream::WriteTagToArray(kCrcTag, at);
  at = CodedOutputStream::WriteLittleEndian32ToArray(crc, at);
  at = CodedOutputStream::WriteTagToArray(kDataTag, at);
  return CodedOutputStream::WriteVarint32ToArray(static_cast<uint32_t>(n), at);
}

}  // namespace

grpc::ByteBuffer ChunkMessage(uint64_t offset, uint32_t crc, const grpc::Slice& data) {
  uint8_t header[kHeaderRoom];
  const uint8_t* const end = PutHeader(offset, data.size(), crc, header);
  const grpc::Slice slices[] = {grpc::Slice(header, end - header), data};
  return grpc::ByteBuffer(slices, 2);
}

struct ChunkBuffers::Pool {
  explicit Pool(size_t n) : bytes(n) {}
  ~Pool() {
    for (char* b : free) std::free(b);
  }
  const size_t bytes;
  runtime::Mutex mu;
  std::vector<char*> free ABSL_GUARDED_BY(mu);
};

// Goes back to the pool when destroyed.
struct ChunkBuffers::Buffer::Memory {
  std::shared_ptr<Pool> pool;
  char* base = nullptr;
  ~Memory() {
    runtime::MutexLock lock(pool->mu);
    pool->free.push_back(base);
  }
};

ChunkBuffers::ChunkBuffers(size_t bytes) : pool_(std::make_shared<Pool>(bytes)) {}
ChunkBuffers::~ChunkBuffers() = default;

ChunkBuffers::Buffer::Buffer(std::unique_ptr<Memory> memory) : memory_(std::move(memory)) {}
ChunkBuffers::Buffer::~Buffer() = default;

char* ChunkBuffers::Buffer::data() const { return memory_->base + kHeaderRoom; }

ChunkBuffers::Buffer ChunkBuffers::Take() {
  auto memory = std::make_unique<Buffer::Memory>();
  memory->pool = pool_;
  {
    runtime::MutexLock lock(pool_->mu);
    if (!pool_->free.empty()) {
      memory->base = pool_->free.back();
      pool_->free.pop_back();
    }
  }
  if (memory->base == nullptr)
    memory->base = static_cast<char*>(std::aligned_alloc(64, kHeaderRoom + (pool_->bytes + 63) / 64 * 64));
  return Buffer(std::move(memory));
}

grpc::ByteBuffer ChunkBuffers::Buffer::ToMessage(uint64_t offset, size_t n, uint32_t crc) && {
  uint8_t header[kHeaderRoom];
  const uint8_t* const end = PutHeader(offset, n, crc, header);
  // Right before the data, so that the message is one piece.
  const size_t header_bytes = end - header;
  char* begin = data() - header_bytes;
  std::memcpy(begin, header, header_bytes);
  grpc::Slice slice(
      begin, header_bytes + n, [](void* m) { delete static_cast<Memory*>(m); }, memory_.release());
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace sherd::server
