// SPDX-License-Identifier: Apache-2.0
#include "kernels/gumbel.h"

#include <cmath>

#include "core/philox.h"
#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {

namespace {

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators"): one to one.
constexpr std::uint64_t scramble(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

const CpuKernels& fastest() {
  static const CpuKernels& found = cpu_kernels(resolve_isa("auto"));
  return found;
}

}  // namespace

GumbelRow gumbel_keys(const GumbelKey& key) {
  // One to one in the request: two requests of one seed never share a Philox key.
  const std::uint64_t mixed = scramble(scramble(key.seed) + key.request);
  const auto words =
      philox4x32_10({static_cast<std::uint32_t>(key.row),
                     static_cast<std::uint32_t>(key.layer),
                     static_cast<std::uint32_t>(key.kv_head),
                     0},
                    {static_cast<std::uint32_t>(mixed), static_cast<std::uint32_t>(mixed >> 32)});
  return {.keys = {words[0], words[1]}};
}

std::uint32_t gumbel_bits(const GumbelRow& row, std::uint32_t position) {
  // MurmurHash3's finalizer (Appleby, smhasher) with a key before it and another within: one to
  // one in the position.
  std::uint32_t x = position + row.keys[0];
  x ^= x >> 16;
  x *= 0x85ebca6b;
  x ^= row.keys[1];
  x ^= x >> 13;
  x *= 0xc2b2ae35;
  return x ^ (x >> 16);
}

float gumbel_from_uniform(float u) { return -std::log(-std::log(u)); }

void gumbel_row(const GumbelKey& key, std::int64_t first, std::int64_t count, float* out) {
  fastest().gumbel_row(gumbel_keys(key), first, count, out);
}

float gumbel_at(const GumbelKey& key, std::int64_t position) {
  float draw = 0.0F;
  gumbel_row(key, position, 1, &draw);
  return draw;
}

void exponential_gather(const GumbelKey& key, std::span<const std::int32_t> positions, float* out) {
  fastest().exponential_gather(
      gumbel_keys(key), positions.data(), static_cast<std::int64_t>(positions.size()), out);
}

}  // namespace hybridgen::kernels
