#include "client/examples/generate.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/utils.h>

#include <algorithm>

namespace sherd::examples {
namespace {

at::Tensor Tokens(absl::string_view bytes) {
  at::Tensor tokens = at::empty({1, static_cast<int64_t>(bytes.size())}, at::kLong);
  int64_t* out = tokens.data_ptr<int64_t>();
  for (char c : bytes) *out++ = static_cast<uint8_t>(c);
  return tokens;
}

int64_t Draw(at::Tensor logits, const GenerateOptions& options, const at::Generator& generator) {
  if (options.temperature <= 0) return logits.argmax().item<int64_t>();
  logits = logits / options.temperature;
  at::Tensor indices;
  if (options.top_k > 0 && options.top_k < logits.numel()) {
    std::tie(logits, indices) = logits.topk(options.top_k);
  }
  const int64_t drawn =
      at::softmax(logits, -1).multinomial(1, /*replacement=*/false, generator).item<int64_t>();
  return indices.defined() ? indices[drawn].item<int64_t>() : drawn;
}

// Length of the valid UTF-8 sequence at the start of `s` that is neither a control character nor overlong; 0
// if none.
size_t SequenceLength(absl::string_view s) {
  const uint8_t lead = s[0];
  if (lead < 0x80) return lead == '\n' || lead == '\t' || (lead >= 0x20 && lead != 0x7f) ? 1 : 0;
  const size_t length = lead >= 0xc2 && lead < 0xe0   ? 2
                        : lead >= 0xe0 && lead < 0xf0 ? 3
                        : lead >= 0xf0 && lead < 0xf5 ? 4
                                                      : 0;
  if (length == 0 || s.size() < length) return 0;
  uint32_t point = lead & (0x7fu >> length);
  for (size_t i = 1; i < length; ++i) {
    const uint8_t byte = s[i];
    if ((byte & 0xc0) != 0x80) return 0;
    point = point << 6 | (byte & 0x3fu);
  }
  const uint32_t least = length == 2 ? 0xa0 : length == 3 ? 0x800 : 0x10000;  // 0x80 .. 0x9f are controls
  return point >= least && point <= 0x10ffff && (point < 0xd800 || point > 0xdfff) ? length : 0;
}

}  // namespace

std::string Generate(Gpt& model, absl::string_view prompt, const GenerateOptions& options) {
  ::torch::NoGradGuard no_grad;
  const at::Generator generator = at::detail::createCPUGenerator(options.seed);
  const int64_t context = model.config().context;
  std::string text(prompt.empty() ? "\n" : prompt);
  const size_t prompt_bytes = text.size();
  Gpt::Cache cache;
  size_t seen = text.size() - std::min<size_t>(text.size(), context);
  for (int64_t i = 0; i < options.tokens; ++i) {
    if (cache.tokens + static_cast<int64_t>(text.size() - seen) > context) {
      cache = Gpt::Cache();
      seen = text.size() - std::max<int64_t>(1, context / 2);
    }
    const at::Tensor logits = model.forward(Tokens(absl::string_view(text).substr(seen)), &cache);
    seen = text.size();
    text.push_back(static_cast<char>(Draw(logits[0][-1], options, generator)));
  }
  return text.substr(prompt_bytes);
}

std::string Printable(absl::string_view bytes) {
  std::string out;
  while (!bytes.empty()) {
    const size_t length = SequenceLength(bytes);
    if (length == 0) {
      out.push_back('?');
    } else {
      out.append(bytes.data(), length);
    }
    bytes.remove_prefix(std::max<size_t>(1, length));
  }
  return out;
}

}  // namespace sherd::examples
