// Pushes into a ControlJob, chunk by chunk.
//
//   grpc::Status s = Push(job, "s0", "a token", /*partial=*/true, {{"w", "param", {300, 70}, values}});
#ifndef SHERD_TESTS_CONTROL_PUSH_H_
#define SHERD_TESTS_CONTROL_PUSH_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "grpcpp/support/status.h"
#include "tests/control/control_job.h"

namespace sherd::tests {

struct PushedTensor {
  std::string name, plane;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// At server `at`, to the end of the call. `spoil`: what is changed in each chunk before it goes; `step`: by
// which the values are stored.
grpc::Status Push(ControlJob& job, const std::string& at, const std::string& token, bool partial,
                  const std::vector<PushedTensor>& tensors,
                  const std::function<void(v1::Chunk&)>& spoil = nullptr, uint64_t* step = nullptr);

}  // namespace sherd::tests

#endif  // SHERD_TESTS_CONTROL_PUSH_H_
