#include "client/batch.h"

namespace sherd {
namespace {

uint64_t Mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

uint64_t SeedOf(uint64_t seed, uint64_t step, int rank, int micro) {
  return Mix(Mix(Mix(seed) ^ step) ^ (static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(micro)));
}

SampleRange ShareOf(int64_t global_batch, int64_t world_size, int64_t rank, int64_t micros, int64_t micro) {
  const int64_t parts = world_size * micros;
  const int64_t part = rank * micros + micro;
  return {global_batch * part / parts, global_batch * (part + 1) / parts};
}

}  // namespace sherd
