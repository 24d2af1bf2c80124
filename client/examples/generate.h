// Text from a model, byte by byte.
#ifndef SHERD_CLIENT_EXAMPLES_GENERATE_H_
#define SHERD_CLIENT_EXAMPLES_GENERATE_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "client/examples/gpt.h"

namespace sherd::examples {

struct GenerateOptions {
  int64_t tokens = 200;      // bytes to produce
  double temperature = 0.8;  // 0 takes the likeliest byte each time
  int64_t top_k = 0;         // draw among this many likeliest; 0 means all
  uint64_t seed = 1;
};

// The bytes that follow `prompt` (a newline if it is empty); deterministic for equal arguments and weights.
// Past the model's context it goes on from the newest half of it. Throws what libtorch throws.
std::string Generate(Gpt& model, absl::string_view prompt, const GenerateOptions& options);

// `bytes` fit for a terminal: UTF-8 and newlines stay, all else (control characters, torn sequences) becomes
// '?'.
std::string Printable(absl::string_view bytes);

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_GENERATE_H_
