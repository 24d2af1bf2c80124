// The edge between libtorch, which throws, and absl::Status.
//
//   absl::Status Run() try { ... } catch (...) { return StatusOfException(); }
#ifndef SHERD_CLIENT_EXAMPLES_TORCH_ERRORS_H_
#define SHERD_CLIENT_EXAMPLES_TORCH_ERRORS_H_

#include "absl/status/status.h"

namespace sherd::examples {

// The exception being handled as one line: kResourceExhausted if memory ran out, else kInternal. Without the
// backtraces that c10::Error carries. REQUIRES: called in a catch block.
absl::Status StatusOfException();

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_TORCH_ERRORS_H_
