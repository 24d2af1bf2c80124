#include "client/optimizer_options.h"

namespace sherd {

GroupScalars DefaultScalars(OptimizerKind kind) {
  GroupScalars s{};
  s[kLr] = 1e-3, s[kBeta1] = 0.9, s[kBeta2] = 0.999, s[kEps] = 1e-8;
  switch (kind) {
    case OptimizerKind::kSgd:
    case OptimizerKind::kAdam:
      break;
    case OptimizerKind::kAdamW:
      s[kWeightDecay] = 0.01;
      break;
    case OptimizerKind::kAdagrad:
      s[kLr] = 1e-2, s[kEps] = 1e-10;
      break;
    case OptimizerKind::kLion:
      s[kLr] = 1e-4, s[kBeta2] = 0.99;
      break;
    case OptimizerKind::kLamb:
      s[kMinCoeff] = 0.01, s[kMaxCoeff] = 10;
      break;
    case OptimizerKind::kMuon:
      s[kWeightDecay] = 0.1, s[kMomentum] = 0.95, s[kNesterov] = 1, s[kNsSteps] = 5;
      break;
  }
  return s;
}

}  // namespace sherd
