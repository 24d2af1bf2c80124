#include "core/initial_values.h"

#include <algorithm>
#include <cmath>

namespace sherd {
namespace {

constexpr double kTwoPi = 6.283185307179586476925286766559;

// FNV-1a over the seed, least significant byte first, and the name.
std::array<uint32_t, 2> KeyOf(uint64_t seed, absl::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&hash](uint8_t byte) { hash = (hash ^ byte) * 0x100000001b3u; };
  for (int i = 0; i < 8; ++i) add(static_cast<uint8_t>(seed >> (8 * i)));
  for (const char c : name) add(static_cast<uint8_t>(c));
  return {static_cast<uint32_t>(hash), static_cast<uint32_t>(hash >> 32)};
}

// The values of elements 4 group ... 4 group + 3.
std::array<float, 4> Group(const Initialiser& how, const std::array<uint32_t, 2>& key, uint64_t group) {
  const std::array<uint32_t, 4> bits =
      Philox({static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), 0, 0}, key);
  std::array<float, 4> out;
  for (int i = 0; i < 4; ++i) {
    if (how.kind == Initialiser::Kind::kUniform) {
      out[i] = static_cast<float>(how.a + (how.b - how.a) * (bits[i] >> 8) * 0x1p-24);
      // Rounded to fp32 the largest could reach the bound.
      if (how.a < how.b && out[i] >= how.b) out[i] = std::nextafter(static_cast<float>(how.b), -INFINITY);
    } else if (i % 2 == 0) {
      const double radius = std::sqrt(-2 * std::log((bits[i] + 1.0) * 0x1p-32));
      const double angle = kTwoPi * (bits[i + 1] * 0x1p-32);
      out[i] = static_cast<float>(how.a + how.b * (radius * std::cos(angle)));
      out[i + 1] = static_cast<float>(how.a + how.b * (radius * std::sin(angle)));
    }
  }
  return out;
}

}  // namespace

std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t x = uint64_t{0xD2511F53} * c[0], y = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(y >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(y),
         static_cast<uint32_t>(x >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(x)};
    k = {k[0] + 0x9E3779B9u, k[1] + 0xBB67AE85u};
  }
  return c;
}

void FillInitial(const Initialiser& how, uint64_t seed, absl::string_view name, int64_t first,
                 absl::Span<float> values) {
  if (how.kind == Initialiser::Kind::kConstant) {
    std::fill(values.begin(), values.end(), static_cast<float>(how.a));
    return;
  }
  const std::array<uint32_t, 2> key = KeyOf(seed, name);
  const int64_t n = static_cast<int64_t>(values.size());
  for (int64_t i = 0; i < n;) {
    const int64_t element = first + i, lane = element % 4;
    const std::array<float, 4> group = Group(how, key, static_cast<uint64_t>(element / 4));
    const int64_t some = std::min(4 - lane, n - i);
    std::copy_n(group.begin() + lane, some, values.begin() + i);
    i += some;
  }
}

}  // namespace sherd
