// The finaliser of splitmix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA
// 2014): a bijection that mixes every bit into every bit. Of a counter or a key it makes what looks random,
// the same everywhere.
//
//   uint64_t of_step = SplitMix64(SplitMix64(seed) ^ step);
#ifndef SHERD_CORE_SPLITMIX_H_
#define SHERD_CORE_SPLITMIX_H_

#include <cstdint>

namespace sherd {

constexpr uint64_t SplitMix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace sherd

#endif  // SHERD_CORE_SPLITMIX_H_
