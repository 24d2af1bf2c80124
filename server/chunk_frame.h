// A Chunk message as gRPC sends it, built by hand so that its data is never copied: values are read straight
// into the buffer that is sent, and buffers are used again.
//
//   ChunkBuffers buffers(1 << 20);
//   ChunkBuffers::Buffer buffer = buffers.Take();
//   Fill(buffer.data(), n);
//   stream->Write(std::move(buffer).ToMessage(offset, n, runtime::Crc32c(buffer.data(), n)));
//
// Thread-safe. The buffers live until gRPC has sent them, also after this object.
#ifndef SHERD_SERVER_CHUNK_FRAME_H_
#define SHERD_SERVER_CHUNK_FRAME_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"

namespace sherd::server {

// The message {offset, data, crc}. `crc` is crc32c of the data.
grpc::ByteBuffer ChunkMessage(uint64_t offset, uint32_t crc, const grpc::Slice& data);

class ChunkBuffers {
 public:
  // Buffers hold `bytes` of data each.
  explicit ChunkBuffers(size_t bytes);
  ~ChunkBuffers();

  class Buffer {
   public:
    Buffer(Buffer&&) = default;
    ~Buffer();
    char* data() const;
    // The message {offset, data[0, n), crc}; the buffer goes with it. `crc` is crc32c of the data: who fills
    // it piece by piece sums each one while it is in the cache. REQUIRES: 0 < n <= bytes.
    grpc::ByteBuffer ToMessage(uint64_t offset, size_t n, uint32_t crc) &&;

   private:
    friend class ChunkBuffers;
    struct Memory;
    explicit Buffer(std::unique_ptr<Memory> memory);
    std::unique_ptr<Memory> memory_;
  };

  // One that is free, or a new one: as many exist as gRPC holds at a time.
  Buffer Take();

 private:
  struct Pool;
  const std::shared_ptr<Pool> pool_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_CHUNK_FRAME_H_
