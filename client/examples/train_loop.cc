#include "client/examples/train_loop.h"

#include <ATen/ATen.h>
#include <torch/utils.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/elastic_sampler.h"
#include "client/examples/generate.h"
#include "client/examples/progress.h"
#include "client/examples/sampler.h"
#include "client/examples/step_log.h"
#include "client/examples/torch_errors.h"
#include "runtime/clock.h"

namespace sherd::examples {
namespace {

constexpr int64_t kEvaluationBatch = 8;  // windows of one forward: bounds its memory

// Everything rank 0 tells of the run.
class Reporter {
 public:
  Reporter(const TrainOptions& options, const Text& text, Gpt& model, const Console& console)
      : options_(options),
        text_(text),
        model_(model),
        console_(console),
        progress_(console.progress, console.terminal, options.steps) {}

  absl::Status StepDone(const StepInfo& info, double step_ms) {
    StepRecord record;
    record.step = info.step;
    record.loss = info.loss;
    record.grad_norm = info.grad_norm;
    record.tokens = info.step * static_cast<uint64_t>(options_.global_batch * options_.context);
    record.epoch = info.epoch;
    record.world_size = info.world_size;
    record.lr = info.lr;
    record.step_ms = step_ms;
    record.skipped = info.skipped;
    record.loss_scale = info.loss_scale;
    record.gathers = info.gathers;
    record.prefetch_hits = info.prefetch_hits;
    record.peak_parameter_bytes = info.peak_parameter_bytes;
    if (!options_.json.empty()) {
      if (!log_.has_value()) {
        absl::StatusOr<StepLog> log = StepLog::Open(options_.json, info.step);
        if (!log.ok()) return log.status();
        log_.emplace(*std::move(log));
      }
      if (absl::Status written = log_->Write(record); !written.ok()) return written;
    }
    progress_.Show(record, runtime::SteadyNow());
    const bool evaluate = options_.eval_every > 0 && info.step % options_.eval_every == 0;
    if (evaluate && info.step != options_.steps) Evaluate(info.step);
    return absl::OkStatus();
  }

  void Evaluate(uint64_t step) {
    const double loss = HeldOutLoss(model_, text_);
    progress_.Finish();
    absl::FPrintF(console_.results, "step %d  held-out loss %.4f\n", step, loss);
    fflush(console_.results);
  }

  void End(uint64_t step) {
    Evaluate(step);
    if (options_.generate > 0) {
      GenerateOptions how;
      how.tokens = options_.generate;
      how.seed = options_.seed;
      absl::FPrintF(console_.results, "%s\n", Printable(Generate(model_, "", how)));
      fflush(console_.results);
    }
  }

  // Ends the progress line, so that an error message starts on a line of its own.
  void Interrupted() { progress_.Finish(); }

 private:
  const TrainOptions& options_;
  const Text& text_;
  Gpt& model_;
  const Console& console_;
  Progress progress_;
  std::optional<StepLog> log_;  // opened by the first step, which says where a continued file goes on
};

// Which windows of the text a micro-batch looks at: a function of its step and its place in it, so that any
// rank of any incarnation, at any world size, takes the same.
class Samples {
 public:
  Samples(const TrainOptions& options, const Text& text)
      : options_(options),
        random_(options.seed, text.train().size(), options.context),
        pass_((static_cast<int64_t>(text.train().size()) - 1) / options.context, options.seed) {}

  // Where they begin. Written to --log-samples before anything is computed of them.
  absl::StatusOr<std::vector<int64_t>> Of(const Batch& batch) {
    std::vector<int64_t> samples, offsets;
    for (int64_t i = batch.samples.begin; i < batch.samples.end; ++i) {
      const int64_t at = (static_cast<int64_t>(batch.step) - 1) * options_.global_batch + i;
      samples.push_back(options_.by_pass ? pass_.Index(at) : random_.Offset(batch.step, i));
      offsets.push_back(options_.by_pass ? samples.back() * options_.context : samples.back());
    }
    if (absl::Status logged = Log(batch, samples); !logged.ok()) return logged;
    return offsets;
  }

 private:
  // One line in one write: ranks share the file.
  absl::Status Log(const Batch& batch, const std::vector<int64_t>& samples) {
    if (options_.log_samples.empty()) return absl::OkStatus();
    if (log_ == nullptr) log_.reset(std::fopen(options_.log_samples.c_str(), "a"));
    const bool written =
        log_ != nullptr &&
        absl::FPrintF(
            log_.get(), "{\"step\":%d,\"world_size\":%d,\"rank\":%d,\"micro\":%d,\"samples\":[%s]}\n",
            batch.step, batch.world_size, batch.rank, batch.micro, absl::StrJoin(samples, ",")) > 0 &&
        std::fflush(log_.get()) == 0;
    return written ? absl::OkStatus()
                   : absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", options_.log_samples));
  }

  struct Close {
    void operator()(FILE* file) const { std::fclose(file); }
  };
  const TrainOptions& options_;
  const Sampler random_;
  const ElasticSampler pass_;
  std::unique_ptr<FILE, Close> log_;
};

absl::StatusOr<at::Tensor> BatchLoss(const TrainOptions& options, const Text& text, Samples& samples,
                                     const Batch& batch, Gpt& model) {
  const absl::StatusOr<std::vector<int64_t>> offsets = samples.Of(batch);
  if (!offsets.ok()) return offsets.status();
  if (offsets->empty()) return at::Tensor();
  return model.Loss(MakeWindows(text.train(), *offsets, options.context + 1));
}

// Steps until the trainer has no more batches; returns the last step made (0 if none was left to make).
absl::StatusOr<uint64_t> RunSteps(const TrainOptions& options, const Text& text, Gpt& model, Trainer& trainer,
                                  Reporter& reporter) {
  Samples samples(options, text);
  uint64_t last_step = 0;
  absl::Time step_began = runtime::SteadyNow();
  while (true) {
    const absl::StatusOr<std::optional<Batch>> batch = trainer.Begin();
    if (!batch.ok()) return batch.status();
    if (!batch->has_value()) return last_step;
    const absl::StatusOr<at::Tensor> loss = BatchLoss(options, text, samples, **batch, model);
    if (!loss.ok()) return loss.status();
    const absl::StatusOr<StepInfo> info = trainer.Step(*loss);
    if (!info.ok()) return info.status();
    if (!info->complete || info->aborted) continue;
    const absl::Time now = runtime::SteadyNow();
    last_step = info->step;
    if (info->rank == 0) {
      const absl::Status told = reporter.StepDone(*info, absl::ToDoubleMilliseconds(now - step_began));
      if (!told.ok()) return told;
    }
    step_began = runtime::SteadyNow();  // evaluation is not part of a step
  }
}

}  // namespace

at::Tensor MakeWindows(absl::string_view bytes, const std::vector<int64_t>& offsets, int64_t length) {
  at::Tensor windows = at::empty({static_cast<int64_t>(offsets.size()), length}, at::kLong);
  int64_t* out = windows.data_ptr<int64_t>();
  for (int64_t offset : offsets) {
    for (char c : bytes.substr(offset, length)) *out++ = static_cast<uint8_t>(c);
  }
  return windows;
}

double HeldOutLoss(Gpt& model, const Text& text) {
  ::torch::NoGradGuard no_grad;
  const int64_t context = model.config().context;
  const std::vector<int64_t> offsets = text.HeldOutWindows(context, kHeldOutWindows);
  const int64_t count = offsets.size();
  double sum = 0;
  for (int64_t i = 0; i < count; i += kEvaluationBatch) {
    const std::vector<int64_t> some(offsets.begin() + i,
                                    offsets.begin() + std::min(count, i + kEvaluationBatch));
    sum += model.Loss(MakeWindows(text.held_out(), some, context + 1)).item<double>() * some.size();
  }
  return sum / count;
}

absl::Status TrainLoop(const TrainOptions& options, const Text& text, Gpt& model, Trainer& trainer,
                       const Console& console) try {
  Reporter reporter(options, text, model, console);
  const absl::StatusOr<uint64_t> last_step = RunSteps(options, text, model, trainer, reporter);
  if (!last_step.ok()) {
    reporter.Interrupted();
    return last_step.status();
  }
  if (trainer.rank() != 0) return absl::OkStatus();
  reporter.End(*last_step == 0 ? options.steps : *last_step);
  return options.save.empty() ? absl::OkStatus() : trainer.Save(options.save);
} catch (...) {
  return StatusOfException();
}

}  // namespace sherd::examples
