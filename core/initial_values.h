// A model's first values as a function of (seed, name of the tensor, element) alone: any part of any tensor
// can be made anywhere, by anyone, and the whole is the same for every number of trainers and servers.
//
//   Initialiser normal{Initialiser::Kind::kNormal, 0, 0.02};
//   FillInitial(normal, /*seed=*/1, "wte.weight", /*first=*/1000, absl::MakeSpan(values));
//
// Random bits are Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011), keyed
// by seed and name, counted by element; normal values are Box and Muller's. Equal on machines whose C library
// rounds log, sin and cos alike. Thread-safe.
#ifndef SHERD_CORE_INITIAL_VALUES_H_
#define SHERD_CORE_INITIAL_VALUES_H_

#include <array>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace sherd {

struct Initialiser {
  enum class Kind { kConstant, kUniform, kNormal };
  Kind kind = Kind::kConstant;
  double a = 0;  // the constant; the least value; the mean
  double b = 0;  // unused; the bound above all values; the standard deviation

  // Of values multiplied by `factor`.
  Initialiser Times(double factor) const { return {kind, a * factor, b * factor}; }
  friend bool operator==(const Initialiser& x, const Initialiser& y) {
    return x.kind == y.kind && x.a == y.a && x.b == y.b;
  }
};

// Elements [first, first + values.size()) of the tensor.
void FillInitial(const Initialiser& how, uint64_t seed, absl::string_view name, int64_t first,
                 absl::Span<float> values);

// The four words of `counter` under `key`.
std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

}  // namespace sherd

#endif  // SHERD_CORE_INITIAL_VALUES_H_
