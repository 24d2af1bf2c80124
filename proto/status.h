// The one mapping between absl::Status and grpc::Status. Codes are the same numbers on both sides.
//
//   return ToGrpc(absl::NotFoundError("no tensor h.9.bias"));    // in a service
//   absl::Status s = FromGrpc(stub->GetCluster(...));            // in a client
#ifndef SHERD_PROTO_STATUS_H_
#define SHERD_PROTO_STATUS_H_

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace sherd {

// A message over 4000 bytes is cut (it travels as a header, and peers bound those); bytes that are not UTF-8
// become '?'.
grpc::Status ToGrpc(const absl::Status& status);

absl::Status FromGrpc(const grpc::Status& status);

}  // namespace sherd

#endif  // SHERD_PROTO_STATUS_H_
