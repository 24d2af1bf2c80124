// Muon's matrices (Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024; as
// torch.optim.Muon, in fp32): a matrix moves along its momentum, made nearly orthogonal by Newton-Schulz
// steps on the whole matrix.
//
//   const MuonScalars s = PrepareMuon(hyper, rows, columns, unscale * clip);
//   MuonDirection({param, {momentum}, grad}, s, rows, columns, steps, direction);   // before, of all of it
//   MuonUpdate({param, {momentum}, grad}, direction, s, elements);                  // then, block by block
//
// No fused multiply-add and one order of additions (gemm.h): the same bits on every machine and for every
// split of blocks. Thread-safe for different matrices.
#ifndef SHERD_KERNELS_MUON_H_
#define SHERD_KERNELS_MUON_H_

#include <cstdint>

#include "kernels/optimizer.h"

namespace sherd {
namespace kernels {

struct MuonScalars {
  float grad_scale;            // g = grad * grad_scale
  float keep, take;            // momentum = keep * momentum + take * g
  float use_moment, use_grad;  // what is made orthogonal: use_moment * momentum + use_grad * g
  float shrink, step_size;     // param = shrink * param - step_size * direction
  double eps;                  // least norm that is divided by
};

// lr, momentum, nesterov, weight_decay and eps of `hyper`; the step is lr * sqrt(max(1, rows / columns)).
MuonScalars PrepareMuon(const Hyper& hyper, int64_t rows, int64_t columns, float grad_scale);

// The direction of a whole matrix, rows * columns elements in a row, by `steps` quintic Newton-Schulz steps;
// fills up to the end of its last block with zeros. Reads planes[0] (momentum before the step) and grad;
// changes neither. Allocates about six times the matrix and blocks for as long as that takes.
void MuonDirection(const UpdateArgs& args, const MuonScalars& scalars, int64_t rows, int64_t columns,
                   int steps, float* direction);

// The element-wise half: momentum (planes[0]) and parameter. REQUIRES: elements is a multiple of
// kBlockElements.
void MuonUpdate(const UpdateArgs& args, const float* direction, const MuonScalars& scalars, int64_t elements);

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_MUON_H_
