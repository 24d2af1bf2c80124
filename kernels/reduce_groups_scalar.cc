#include "kernels/half.h"
#include "kernels/lane_tree.h"
#include "kernels/reduce_groups.h"

namespace sherd {
namespace kernels {
namespace {

float Rounded(float x, DType wire) {
  if (wire == DType::kFloat32) return x;
  return wire == DType::kBFloat16 ? FloatFromBf16(Bf16FromFloat(x)) : FloatFromFp16(Fp16FromFloat(x));
}

// False: no source is there.
bool PartialOf(const Source* sources, int n, int64_t i, float* p) {
  bool started = false;
  for (int k = 0; k < n; ++k) {
    if (sources[k].data == nullptr) continue;
    const float x = ElementOf(sources[k], i) * sources[k].scale;
    *p = started ? *p + x : x;
    started = true;
  }
  return started;
}

}  // namespace

void ReduceGroupsScalar(const SourceGroup* groups, int n, DType wire, bool accumulate, float* out,
                        int64_t blocks, double* block_sumsq, bool stream) {
  Require(!(accumulate && stream),
          "ReduceGroupsScalar: accumulate reads out, stream writes it past the caches");
  for (int64_t b = 0; b < blocks; ++b) {
    double lanes[kNormLanes] = {};
    for (int64_t i = b * kBlockElements; i < (b + 1) * kBlockElements; ++i) {
      float t = 0;
      bool started = false;
      for (int g = 0; g < n; ++g) {
        float p = 0;
        if (!PartialOf(groups[g].sources, groups[g].n, i, &p)) continue;
        p = Rounded(p, wire);
        t = started ? t + p : p;
        started = true;
      }
      out[i] = accumulate ? out[i] + t : t;
      lanes[i % kNormLanes] += static_cast<double>(out[i]) * static_cast<double>(out[i]);
    }
    block_sumsq[b] = SumLanes(lanes);
  }
}

void ReducePartialScalar(const Source* sources, int n, DType wire, void* out, int64_t blocks) {
  for (int64_t i = 0; i < blocks * kBlockElements; ++i) {
    float p = 0;
    Require(PartialOf(sources, n, i, &p), "ReducePartialScalar: no source is there");
    if (wire == DType::kFloat32) {
      static_cast<float*>(out)[i] = p;
    } else {
      static_cast<uint16_t*>(out)[i] = wire == DType::kBFloat16 ? Bf16FromFloat(p) : Fp16FromFloat(p);
    }
  }
}

}  // namespace kernels
}  // namespace sherd
