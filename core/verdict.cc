#include "core/verdict.h"

#include <cmath>

#include "absl/strings/str_format.h"

namespace sherd {
namespace {

// NaN agrees with NaN: what counts is that ranks handed in the same thing.
bool Same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

std::string Differ(absl::string_view what, double first, size_t rank, double other) {
  return absl::StrFormat(
      "ranks disagree on %s: rank 0 has %.9g, rank %d has %.9g; every rank must pass the same value", what,
      first, rank, other);
}

// Empty, or one line that names the first field on which a rank differs from rank 0.
std::string Disagreement(const std::vector<TrainerStep>& steps) {
  const TrainerStep& a = steps[0];
  for (size_t r = 1; r < steps.size(); ++r) {
    const TrainerStep& b = steps[r];
    if (a.groups.size() != b.groups.size()) {
      return Differ("the number of parameter groups", a.groups.size(), r, b.groups.size());
    }
    for (size_t g = 0; g < a.groups.size(); ++g) {
      for (int f = 0; f < kScalarFields; ++f) {
        if (!Same(a.groups[g][f], b.groups[g][f])) {
          return Differ(absl::StrFormat("%s of parameter group %d", ScalarFieldName(f), g), a.groups[g][f], r,
                        b.groups[g][f]);
        }
      }
    }
    if (!Same(a.max_grad_norm, b.max_grad_norm))
      return Differ("max_grad_norm", a.max_grad_norm, r, b.max_grad_norm);
    if (!Same(a.loss_scale.scale, b.loss_scale.scale)) {
      return Differ("the loss scale", a.loss_scale.scale, r, b.loss_scale.scale);
    }
    if (a.loss_scale != b.loss_scale) {
      return absl::StrFormat(
          "ranks disagree on the history of the loss scale: rank 0 has seen %d steps (%d "
          "skipped), rank %d %d (%d); restart both from the same state",
          a.loss_scale.i, a.loss_scale.skipped, r, b.loss_scale.i, b.loss_scale.skipped);
    }
  }
  return "";
}

// Empty, or one line that names a scalar no optimizer can work with. What reaches a kernel has passed here.
std::string BadScalar(const TrainerStep& step) {
  for (size_t g = 0; g < step.groups.size(); ++g) {
    const GroupScalars& v = step.groups[g];
    const auto bad = [&](ScalarField f, const char* rule) {
      return absl::StrFormat("%s of parameter group %d is %g: it must be %s", ScalarFieldName(f), g, v[f],
                             rule);
    };
    for (ScalarField f :
         {kLr, kWeightDecay, kMomentum, kLrDecay, kInitialAccumulatorValue, kMinCoeff, kMaxCoeff}) {
      if (!(std::isfinite(v[f]) && v[f] >= 0)) return bad(f, "finite and at least 0");
    }
    for (ScalarField f : {kBeta1, kBeta2}) {
      if (!(v[f] >= 0 && v[f] < 1)) return bad(f, "at least 0 and below 1");
    }
    if (!(std::isfinite(v[kEps]) && static_cast<float>(v[kEps]) > 0))
      return bad(kEps, "finite and above 0 in fp32");
    if (!(v[kNsSteps] >= 0 && v[kNsSteps] <= 100 && v[kNsSteps] == std::floor(v[kNsSteps]))) {
      return bad(kNsSteps, "a whole number, at least 0 and at most 100");
    }
    if (!std::isfinite(v[kDampening])) return bad(kDampening, "finite");
    if (v[kNesterov] != 0 && !(v[kMomentum] > 0 && v[kDampening] == 0)) {
      return bad(kNesterov, "0 unless momentum is above 0 and dampening is 0");
    }
  }
  const double scale = step.loss_scale.scale;
  if (!(std::isfinite(scale) && scale > 0)) {
    return absl::StrFormat("the loss scale is %g: it must be finite and above 0", scale);
  }
  if (!(step.max_grad_norm >= 0)) {
    return absl::StrFormat("max_grad_norm is %g: it must be at least 0 (0: no clipping)", step.max_grad_norm);
  }
  return "";
}

}  // namespace

const char* ScalarFieldName(int field) {
  static constexpr const char* kNames[kScalarFields] = {
      "lr",        "beta1",     "beta2",    "eps",      "weight_decay",
      "momentum",  "dampening", "nesterov", "lr_decay", "initial_accumulator_value",
      "min_coeff", "max_coeff", "ns_steps"};
  return field >= 0 && field < kScalarFields ? kNames[field] : "unknown";
}

Verdict GiveUp(StepId id) {
  Verdict v;
  v.id = id;
  v.kind = VerdictKind::kGivenUp;
  return v;
}

Verdict Decide(const std::vector<TrainerStep>& steps, const std::vector<OwnerPrepared>& prepared,
               const LossScaleSpec& loss_scale) {
  Verdict v;
  v.id = steps[0].id;
  double weight = 0, loss_sum = 0;
  for (const TrainerStep& s : steps) {
    weight += s.weight;
    v.samples += s.samples;
    if (s.samples > 0) loss_sum += s.loss * static_cast<double>(s.samples);
    v.has_grad.resize(std::max(v.has_grad.size(), s.has_grad.size()));
    for (size_t i = 0; i < s.has_grad.size(); ++i) v.has_grad[i] |= s.has_grad[i];
    v.imports.insert(v.imports.end(), s.imports.begin(), s.imports.end());
  }
  v.loss = v.samples > 0 ? loss_sum / static_cast<double>(v.samples) : 0;
  v.groups = steps[0].groups;
  v.loss_scale = steps[0].loss_scale;
  v.reason = Disagreement(steps);
  if (v.reason.empty()) v.reason = BadScalar(steps[0]);
  if (v.reason.empty() && !(weight > 0)) {
    v.reason = "no rank contributed a sample to this step; give at least one rank a batch";
  }
  if (!v.reason.empty()) {
    v.kind = VerdictKind::kReject;
    v.imports.clear();
    return v;
  }
  ExactSum total;
  for (const OwnerPrepared& p : prepared) {
    total.Merge(p.sum_squares);
    v.proposals.MergeMax(p.proposals);
  }
  const double mean = 1.0 / (weight * steps[0].loss_scale.scale);
  v.grad_norm = std::sqrt(total.Value()) * mean;
  const bool overflow = !std::isfinite(v.grad_norm);
  v.loss_scale = NextLossScale(loss_scale, steps[0].loss_scale, overflow);
  if (overflow) {
    v.kind = VerdictKind::kSkip;
    if (v.loss_scale.floor != 0) v.reason = FloorMessage(v.loss_scale);
    return v;
  }
  if (steps[0].max_grad_norm > 0) v.clip = std::min(1.0, steps[0].max_grad_norm / (v.grad_norm + 1e-6));
  v.grad_scale = mean * v.clip;
  return v;
}

}  // namespace sherd
