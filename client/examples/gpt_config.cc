#include "client/examples/gpt_config.h"

#include <algorithm>
#include <map>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/examples/text.h"

namespace sherd::examples {
namespace {

struct Size {
  absl::string_view name;
  int64_t layers;
  int64_t width;
  double learning_rate;
};

constexpr Size kSizes[] = {
    {"tiny", 2, 128, 1e-3}, {"small", 6, 384, 6e-4}, {"gpt2", 12, 768, 6e-4}, {"gpt2-xl", 48, 1600, 2e-4}};

}  // namespace

absl::StatusOr<GptConfig> GptConfig::Named(absl::string_view size, int64_t context) {
  for (const Size& s : kSizes) {
    if (s.name == size) return GptConfig{s.layers, s.width, context};
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no size is called \"", size, "\": there are ", absl::StrJoin(kGptSizes, ", ")));
}

double DefaultLearningRate(absl::string_view size) {
  for (const Size& s : kSizes) {
    if (s.name == size) return s.learning_rate;
  }
  return kSizes[0].learning_rate;
}

absl::StatusOr<GptConfig> GptConfig::FromShapes(
    const std::vector<std::pair<std::string, std::vector<int64_t>>>& tensors) {
  std::map<std::string, std::vector<int64_t>> shapes(tensors.begin(), tensors.end());
  for (const char* name : {"wte.weight", "wpe.weight"}) {
    const auto found = shapes.find(name);
    if (found == shapes.end() || found->second.size() != 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("no matrix called ", name, ": this is not a GPT of train_gpt"));
    }
  }
  GptConfig config;
  config.width = shapes["wte.weight"][1];
  config.context = shapes["wpe.weight"][0];
  if (config.width < kHeadSize || config.width % kHeadSize != 0 || config.context < 1) {
    return absl::InvalidArgumentError(absl::StrCat("a width of ", config.width, " and ", config.context,
                                                   " positions: the width must be a multiple of ",
                                                   kHeadSize));
  }
  for (const auto& [name, shape] : shapes) {
    const std::vector<absl::string_view> parts = absl::StrSplit(name, absl::MaxSplits('.', 2));
    int64_t block = 0;
    if (parts.size() == 3 && parts[0] == "h" && absl::SimpleAtoi(parts[1], &block)) {
      config.layers = std::max(config.layers, block + 1);
      if (parts[2] == "mlp.router.weight" && shape.size() == 2) config.experts = shape[1];
    }
  }
  if (config.experts < 0 || config.experts > static_cast<int64_t>(tensors.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("a router of ", config.experts, " experts, with ", tensors.size(), " tensors in all"));
  }
  if (config.layers > static_cast<int64_t>(tensors.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("a tensor of block ", config.layers - 1, " among ", tensors.size(), " tensors in all"));
  }
  for (const ParameterSpec& spec : ParameterSpecs(config)) {
    const auto found = shapes.find(spec.name);
    if (found == shapes.end())
      return absl::InvalidArgumentError(absl::StrCat("tensor ", spec.name, " is missing"));
    if (found->second != spec.shape) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", spec.name, " has shape [",
                                                     absl::StrJoin(found->second, ", "), "], not [",
                                                     absl::StrJoin(spec.shape, ", "), "]"));
    }
  }
  return config;
}

std::vector<ParameterSpec> ParameterSpecs(const GptConfig& config) {
  const int64_t d = config.width;
  std::vector<ParameterSpec> specs = {{"wte.weight", {kVocabulary, d}}, {"wpe.weight", {config.context, d}}};
  const auto add = [&specs](const std::string& module, std::vector<int64_t> weight, int64_t bias) {
    specs.push_back({module + ".weight", std::move(weight)});
    specs.push_back({module + ".bias", {bias}});
  };
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string block = absl::StrCat("h.", i, ".");
    add(block + "ln_1", {d}, d);
    add(block + "attn.c_attn", {d, 3 * d}, 3 * d);
    add(block + "attn.c_proj", {d, d}, d);
    add(block + "ln_2", {d}, d);
    const auto feed_forward = [&](const std::string& mlp) {
      add(mlp + "c_fc", {d, 4 * d}, 4 * d);
      add(mlp + "c_proj", {4 * d, d}, d);
    };
    if (config.experts == 0) {
      feed_forward(block + "mlp.");
      continue;
    }
    specs.push_back({block + "mlp.router.weight", {d, config.experts}});
    for (int64_t e = 0; e < config.experts; ++e) feed_forward(absl::StrCat(block, "mlp.experts.", e, "."));
  }
  add("ln_f", {d}, d);
  return specs;
}

int64_t ParameterCount(const GptConfig& config) {
  int64_t count = 0;
  for (const ParameterSpec& spec : ParameterSpecs(config)) {
    int64_t elements = 1;
    for (int64_t n : spec.shape) elements *= n;
    count += elements;
  }
  return count;
}

bool IsDecayed(absl::string_view name) {
  return absl::StartsWith(name, "h.") && absl::EndsWith(name, ".weight") && !absl::StrContains(name, ".ln_");
}

}  // namespace sherd::examples
