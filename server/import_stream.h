// The server's end of WriteTensor, Push and WriteShare, which differ in their messages only: begin, chunks,
// commit.
#ifndef SHERD_SERVER_IMPORT_STREAM_H_
#define SHERD_SERVER_IMPORT_STREAM_H_

#include "absl/status/status.h"

namespace sherd::server {

// Reads chunks from `reader` into `writer`, an ImportWriter or ImportStage, up to the commit. Its errors;
// CANCELLED when the stream ends without a commit.
template <typename Request, typename Reader, typename Writer>
absl::Status TakeImport(Reader* reader, Writer& writer) {
  Request request;
  while (reader->Read(&request)) {
    switch (request.kind_case()) {
      case Request::kChunk:
        if (absl::Status s = writer.Append(request.chunk()); !s.ok()) return s;
        break;
      case Request::kCommit:
        return writer.Finish();
      default:
        return absl::InvalidArgumentError("after the first message come chunks, then a commit");
    }
  }
  return absl::CancelledError("the stream ended without a commit: nothing was changed");
}

}  // namespace sherd::server

#endif  // SHERD_SERVER_IMPORT_STREAM_H_
