#include "client/examples/sharded_gpt.h"

#include "client/examples/weights.h"
#include "client/torch/meta_init.h"
#include "runtime/formats/checkpoint.h"

namespace sherd::examples {
namespace {

std::shared_ptr<Gpt> WithoutValues(const GptConfig& config) {
  const sherd::torch::MetaInit meta(/*seed=*/0);
  auto model = std::make_shared<Gpt>(config);
  for (at::Tensor& parameter : model->parameters()) parameter.requires_grad_(false);
  return model;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ShardedGpt>> ShardedGpt::Load(const std::string& endpoint,
                                                             const std::string& path, DType compute) {
  if (endpoint.empty()) {
    return absl::FailedPreconditionError(
        "SHERD_ENDPOINT is not set: start with `sherd run -n 2 -- sample_gpt --sharded ...`");
  }
  const absl::StatusOr<std::unique_ptr<formats::Checkpoint>> file = formats::Checkpoint::Open(path);
  if (!file.ok()) return file.status();
  const absl::StatusOr<GptConfig> config = ConfigOf(path, **file);
  if (!config.ok()) return config.status();
  SessionOptions where = SessionOptions::FromEnvironment();
  where.endpoints = endpoint;
  where.restore.directory = path;
  where.restore.weights_only = true;
  absl::StatusOr<std::unique_ptr<Session>> session = Session::Connect(std::move(where));
  if (!session.ok()) return session.status();
  std::shared_ptr<Gpt> model = WithoutValues(*config);
  ZeroOptions how;
  how.stage(3).compute(compute);
  absl::StatusOr<std::unique_ptr<sherd::torch::ZeroOptimizer>> zero =
      sherd::torch::ZeroOptimizer::Create(**session, model->named_parameters(), SgdOptions(/*lr=*/0), how,
                                          sherd::torch::NamedTensors(), model->sharded_blocks());
  if (!zero.ok()) return zero.status();
  return std::unique_ptr<ShardedGpt>(new ShardedGpt(*std::move(session), std::move(model), *std::move(zero)));
}

}  // namespace sherd::examples
