// The numbers an optimizer works with: what the user sets (Hyper) and what the kernels read (Scalars).
#ifndef SHERD_KERNELS_SCALARS_H_
#define SHERD_KERNELS_SCALARS_H_

#include <cstdint>
#include <string>

#include "kernels/optimizer_kinds.h"

namespace sherd {
namespace kernels {

// Hyper-parameters, with the names, meanings and defaults of torch.optim. An optimizer ignores those that are
// not its own.
struct Hyper {
  double lr = 1e-3;
  double beta1 = 0.9;       // Adam, AdamW, Lion, LAMB: betas[0]
  double beta2 = 0.999;     // Adam, AdamW, Lion, LAMB: betas[1]
  double eps = 1e-8;        // Adam, AdamW, Adagrad, LAMB
  double weight_decay = 0;  // SGD, Adam, Adagrad: added to the gradient; AdamW, Lion, LAMB: decoupled
  double momentum = 0;      // SGD
  double dampening = 0;     // SGD
  bool nesterov = false;    // SGD
  double lr_decay = 0;      // Adagrad
  double initial_accumulator_value = 0;  // Adagrad
  double min_coeff = 0.01;               // LAMB: least trust ratio
  double max_coeff = 10;                 // LAMB: largest; 0: none
};

// Factors of the expressions, already rounded to fp32. Filled by an optimizer's Prepare; one may use a part.
struct Scalars {
  float grad_scale;    // g = grad * grad_scale, before anything else
  float l2;            // g += l2 * param
  float shrink;        // param *= shrink (decoupled weight decay: 1 - lr * weight_decay)
  float keep1, take1;  // first moment or momentum: m = keep1 * m + take1 * g
  float keep2, take2;  // second moment: v = keep2 * v + take2 * g * g
  float add;           // Adagrad: the sum of squares begins with it
  float use_moment;    // SGD, Lion, LAMB: direction = use_moment * m + use_grad * g
  float use_grad;
  float denom_scale;  // 1 / sqrt(bias correction 2): denominator = sqrt(v) * denom_scale + eps
  float eps;
  float step_size;  // param -= step_size * direction
};

// 1 - beta^step, the bias correction of a moment, by repeated squaring: IEEE multiplications alone, unlike
// the C library's pow, so hosts with different libraries agree. Absolute error below 1e-12. REQUIRES: 0 <=
// beta < 1.
double BiasCorrection(double beta, uint64_t step);

// Empty if value is finite and low <= value < high (high itself allowed when infinite), else a sentence
// naming `field`.
std::string CheckRange(const char* field, double value, double low, double high);

// Empty if `eps` is finite and above zero in fp32: with 0 an element that never saw a gradient would become
// 0/0.
std::string CheckEps(double eps);

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_SCALARS_H_
