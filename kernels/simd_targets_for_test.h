// Runs a test body on every SIMD instruction set of this CPU that was compiled in.
#ifndef SHERD_KERNELS_SIMD_TARGETS_FOR_TEST_H_
#define SHERD_KERNELS_SIMD_TARGETS_FOR_TEST_H_

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cstdint>

namespace sherd {
namespace kernels {

// Calls body() once per instruction set, with run-time dispatch held to it; returns how many there were.
template <class Body>
int ForEachSimdTarget(Body body) {
  int count = 0;
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body();
    ++count;
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return count;
}

}  // namespace kernels
}  // namespace sherd

#endif  // SHERD_KERNELS_SIMD_TARGETS_FOR_TEST_H_
