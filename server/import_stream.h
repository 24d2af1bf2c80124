// The server's end of WriteTensor and Push, which differ in their messages only: begin, chunks, commit.
#ifndef SHERD_SERVER_IMPORT_STREAM_H_
#define SHERD_SERVER_IMPORT_STREAM_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/convert.h"
#include "server/import_writer.h"

namespace sherd::server {

// Reads chunks from `reader` into `writer` up to the commit. INVALID_ARGUMENT, DATA_LOSS as ImportWriter;
// CANCELLED when the stream ends without a commit.
template <typename Request, typename Reader>
absl::Status TakeImport(Reader* reader, ImportWriter& writer) {
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
