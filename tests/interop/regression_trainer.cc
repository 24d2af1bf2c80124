// A trainer whose every number another program can compute again: a small regression on data by formula, all
// of it in every step, so that the loss of a step depends on nothing but the parameters. Under `sherd run`.
//
//   regression_trainer STEPS LEARNING_RATE LOG
//
// Model: Linear(8, 16), tanh, Linear(16, 4), named as in torch.nn.Sequential. Data: 12 rows, x[i][j] =
// sin(8 i + j), y[i][j] = cos(4 i + j). Loss: mean of squares. AdamW, betas 0.9 and 0.999, eps 1e-8, weight
// decay 0.01. LOG gets a line {"step": s, "loss": l} for each step, from rank 0.
#include <torch/torch.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "client/session.h"
#include "client/torch/zero_optimizer.h"

namespace {

constexpr int kRows = 12, kInputs = 8, kOutputs = 4;

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "regression_trainer: %s\n", std::string(status.message()).c_str());
  return 1;
}

int Run(int64_t steps, double lr, const char* path) {
  torch::manual_seed(7);
  torch::nn::Sequential model(torch::nn::Linear(kInputs, 16), torch::nn::Tanh(),
                              torch::nn::Linear(16, kOutputs));
  const torch::Tensor x = torch::arange(kRows * kInputs, torch::kFloat32).view({kRows, kInputs}).sin();
  const torch::Tensor y = torch::arange(kRows * kOutputs, torch::kFloat32).view({kRows, kOutputs}).cos();
  auto session = sherd::Session::Connect(sherd::SessionOptions::FromEnvironment());
  if (!session.ok()) return Fail(session.status());
  auto zero =
      sherd::torch::ZeroOptimizer::Create(**session, model->named_parameters(), sherd::AdamWOptions().lr(lr),
                                          sherd::ZeroOptions().stage(1).global_batch(kRows).steps(steps));
  if (!zero.ok()) return Fail(zero.status());
  std::FILE* log = (*session)->rank() == 0 ? std::fopen(path, "a") : nullptr;
  for (;;) {
    const sherd::Batch batch = (*zero)->Begin();
    if (!batch.status.ok()) return Fail(batch.status);
    if (!batch.more) break;
    const torch::Tensor out = model->forward(x.slice(0, batch.samples.begin, batch.samples.end));
    const torch::Tensor loss = torch::mse_loss(out, y.slice(0, batch.samples.begin, batch.samples.end));
    loss.backward();
    const absl::StatusOr<sherd::StepInfo> info = (*zero)->Step(loss.detach());
    if (!info.ok()) return Fail(info.status());
    if (log == nullptr || info->aborted) continue;
    std::fprintf(log, "{\"step\":%llu,\"loss\":%.9g}\n", static_cast<unsigned long long>(info->step),
                 info->loss);
    std::fflush(log);
  }
  if (log != nullptr) std::fclose(log);
  const absl::Status left = (*zero)->Detach();
  return left.ok() ? 0 : Fail(left);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: regression_trainer STEPS LEARNING_RATE LOG\n");
    return 2;
  }
  return Run(std::atoll(argv[1]), std::atof(argv[2]), argv[3]);
}
