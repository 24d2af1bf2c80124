// All tensors of a job whose name matches, however many pages they take.
#ifndef SHERD_CLIENT_CLI_TENSOR_LIST_H_
#define SHERD_CLIENT_CLI_TENSOR_LIST_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/rpc/job_client.h"
#include "proto/sherd/v1/shard.pb.h"

namespace sherd::cli {

struct TensorList {
  std::vector<v1::ListTensorsResponse::Tensor> tensors;  // in layout order
  std::vector<v1::Buffer> buffers;
  uint64_t epoch = 0;
  uint64_t step = 0;
};

// Empty `glob`: all. Errors are the call's.
absl::StatusOr<TensorList> ListAll(rpc::JobClient& client, const std::string& glob, absl::Time deadline);

// A glob that matches `name` alone.
std::string EscapeGlob(const std::string& name);

// "fp32", "bf16", "fp16".
std::string DTypeText(v1::DType dtype);

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_TENSOR_LIST_H_
