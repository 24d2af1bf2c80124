#include "kernels/muon.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "kernels/gemm.h"

namespace sherd {
namespace kernels {
namespace {

// Of the quintic x -> a x + b x^3 + c x^5, which drives singular values towards 1.
constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

// Zeros, aligned to 64 bytes.
Buffer MakeBuffer(int64_t floats) {
  const int64_t bytes = (floats * 4 + 63) / 64 * 64;
  float* p = static_cast<float*>(std::aligned_alloc(64, std::max<int64_t>(bytes, 64)));
  Require(p != nullptr, "MuonDirection: no memory for its workspace");
  std::fill_n(p, bytes / 4, 0.0f);
  return Buffer(p);
}

float Moved(const MuonScalars& s, float momentum, float g) { return s.keep * momentum + s.take * g; }

// A matrix whose rows are padded.
struct Matrix {
  Matrix(int64_t r, int64_t c)
      : rows(r), columns(c), stride(PaddedColumns(c)), data(MakeBuffer(r * stride)) {}
  float& at(int64_t r, int64_t c) { return data[r * stride + c]; }
  float at(int64_t r, int64_t c) const { return data[r * stride + c]; }
  int64_t rows, columns, stride;
  Buffer data;
};

void Multiply(const Matrix& a, const Matrix& b, float* scratch, Matrix* c) {
  Gemm(a.data.get(), a.stride, b.data.get(), b.stride, a.rows, a.columns, c->stride, scratch, c->data.get(),
       c->stride);
}

void Transpose(const Matrix& from, Matrix* to) {
  constexpr int64_t kTile = 16;
  for (int64_t r0 = 0; r0 < from.rows; r0 += kTile) {
    for (int64_t c0 = 0; c0 < from.columns; c0 += kTile) {
      for (int64_t r = r0; r < std::min(r0 + kTile, from.rows); ++r) {
        for (int64_t c = c0; c < std::min(c0 + kTile, from.columns); ++c) to->at(c, r) = from.at(r, c);
      }
    }
  }
}

// x *= 1 / max(its norm, eps).
void Normalise(Matrix* x, double eps) {
  double squares = 0;
  for (int64_t r = 0; r < x->rows; ++r) {
    for (int64_t c = 0; c < x->columns; ++c) squares += static_cast<double>(x->at(r, c)) * x->at(r, c);
  }
  const float factor = static_cast<float>(1 / std::max(std::sqrt(squares), eps));
  for (int64_t i = 0; i < x->rows * x->stride; ++i) x->data[i] *= factor;
}

void NewtonSchulz(Matrix* x, int steps) {
  Matrix transposed(x->columns, x->rows), gram(x->rows, x->rows), square(x->rows, x->rows),
      product(x->rows, x->columns);
  const Buffer scratch = MakeBuffer(GemmScratch(std::max(x->rows, x->columns)));
  for (int step = 0; step < steps; ++step) {
    Transpose(*x, &transposed);
    Multiply(*x, transposed, scratch.get(), &gram);
    Multiply(gram, gram, scratch.get(), &square);
    for (int64_t i = 0; i < gram.rows * gram.stride; ++i) {
      square.data[i] = kB * gram.data[i] + kC * square.data[i];
    }
    Multiply(square, *x, scratch.get(), &product);
    for (int64_t i = 0; i < x->rows * x->stride; ++i) x->data[i] = kA * x->data[i] + product.data[i];
  }
}

}  // namespace

MuonScalars PrepareMuon(const Hyper& h, int64_t rows, int64_t columns, float grad_scale) {
  MuonScalars s;
  s.grad_scale = grad_scale;
  s.keep = static_cast<float>(h.momentum);
  s.take = static_cast<float>(1 - h.momentum);
  s.use_moment = h.nesterov ? s.keep : 1.0f;
  s.use_grad = h.nesterov ? s.take : 0.0f;
  s.shrink = static_cast<float>(1 - h.lr * h.weight_decay);
  const double ratio = static_cast<double>(rows) / static_cast<double>(std::max<int64_t>(columns, 1));
  s.step_size = static_cast<float>(h.lr * std::sqrt(std::max(1.0, ratio)));
  s.eps = h.eps;
  return s;
}

void MuonDirection(const UpdateArgs& args, const MuonScalars& s, int64_t rows, int64_t columns, int steps,
                   float* direction) {
  // Work on the wide one of the matrix and its transpose: the smaller Gram matrix.
  const bool tall = rows > columns;
  Matrix x(std::min(rows, columns), std::max(rows, columns));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t i = r * columns + c;
      const float g = args.grad[i] * s.grad_scale;
      const float v = s.use_moment * Moved(s, args.planes[0][i], g) + s.use_grad * g;
      (tall ? x.at(c, r) : x.at(r, c)) = v;
    }
  }
  Normalise(&x, s.eps);
  NewtonSchulz(&x, steps);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) direction[r * columns + c] = tall ? x.at(c, r) : x.at(r, c);
  }
  const int64_t n = rows * columns;
  std::fill(direction + n, direction + (n + kBlockElements - 1) / kBlockElements * kBlockElements, 0.0f);
}

void MuonUpdate(const UpdateArgs& args, const float* direction, const MuonScalars& scalars,
                int64_t elements) {
  const MuonScalars s = scalars;
  float* const __restrict__ param = args.param;
  float* const __restrict__ momentum = args.planes[0];
  const float* const __restrict__ grad = args.grad;
  for (int64_t i = 0; i < elements; ++i) {
    momentum[i] = Moved(s, momentum[i], grad[i] * s.grad_scale);
    param[i] = s.shrink * param[i] - s.step_size * direction[i];
  }
}

}  // namespace kernels
}  // namespace sherd
