// SPDX-License-Identifier: Apache-2.0
#include "kernels/gumbel.h"

#include <array>
#include <cmath>
#include <cstddef>

#include "core/philox.h"

namespace hybridgen::kernels {

namespace {

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators"): one to one.
constexpr std::uint64_t scramble(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

/// The blocks of one row. The last one is remembered.
class Blocks {
 public:
  explicit Blocks(const GumbelKey& key)
      // One to one in the request: two requests of one seed never share a Philox key.
      : key_(scramble(scramble(key.seed) + key.request)),
        counter_{0,
                 static_cast<std::uint32_t>(key.row),
                 static_cast<std::uint32_t>(key.layer),
                 static_cast<std::uint32_t>(key.query_head)} {
    draw(0);
  }

  float at(std::int64_t position) {
    const auto block = static_cast<std::uint32_t>(position >> 2);
    if (block != counter_[0]) draw(block);
    // 23 bits and a half: never 0 or 1 in float32, and symmetric about 1/2.
    const std::uint32_t bits = bits_[static_cast<std::size_t>(position & 3)] >> 9;
    return gumbel_from_uniform((static_cast<float>(bits) + 0.5F) * 0x1p-23F);
  }

 private:
  void draw(std::uint32_t block) {
    counter_[0] = block;
    bits_ = philox4x32_10(
        counter_, {static_cast<std::uint32_t>(key_), static_cast<std::uint32_t>(key_ >> 32)});
  }

  std::uint64_t key_;
  std::array<std::uint32_t, 4> counter_;
  std::array<std::uint32_t, 4> bits_{};
};

}  // namespace

float gumbel_from_uniform(float u) { return -std::log(-std::log(u)); }

void gumbel_row(const GumbelKey& key, std::int64_t first, std::int64_t count, float* out) {
  Blocks blocks(key);
  for (std::int64_t j = 0; j < count; ++j) out[j] = blocks.at(first + j);
}

float gumbel_at(const GumbelKey& key, std::int64_t position) { return Blocks(key).at(position); }

void gumbel_gather(const GumbelKey& key, std::span<const std::int32_t> positions, float* out) {
  Blocks blocks(key);
  for (std::size_t j = 0; j < positions.size(); ++j) out[j] = blocks.at(positions[j]);
}

}  // namespace hybridgen::kernels
