// Ways to move memory as fast as this machine can. The best rate among them is the bound that benchmarks of
// memory-bound kernels are measured against, in the same run.
#ifndef SHERD_BENCH_MEMORY_PATTERNS_H_
#define SHERD_BENCH_MEMORY_PATTERNS_H_

#include <cstdint>
#include <vector>

namespace sherd {
namespace bench {

constexpr int kPatternArrays = 4;

struct MemoryPattern {
  const char* name;
  // Patterns of one mix ask for reads and writes in about the same proportion.
  const char* mix;
  // What the program reads and writes for each index; a write's hidden read of its line is not counted.
  int bytes_per_element;
  // Touches elements [begin, end) of its arrays. REQUIRES: begin, end multiples of 16; arrays aligned to 64
  // bytes. Keeps every value finite and normal if all start at 1.
  void (*run)(float* const arrays[kPatternArrays], int64_t begin, int64_t end);
};

// Compiled for each instruction set, chosen at run time, like the kernels.
const std::vector<MemoryPattern>& MemoryPatterns();

}  // namespace bench
}  // namespace sherd

#endif  // SHERD_BENCH_MEMORY_PATTERNS_H_
