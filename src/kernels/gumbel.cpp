// SPDX-License-Identifier: Apache-2.0
#include "kernels/gumbel.h"

#include <cmath>

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

PhiloxRow philox_row(const GumbelKey& key) {
  // One to one in the request: two requests of one seed never share a Philox key.
  const std::uint64_t mixed = scramble(scramble(key.seed) + key.request);
  return {.counter = {static_cast<std::uint32_t>(key.row),
                      static_cast<std::uint32_t>(key.layer),
                      static_cast<std::uint32_t>(key.query_head)},
          .key = {static_cast<std::uint32_t>(mixed), static_cast<std::uint32_t>(mixed >> 32)}};
}

float gumbel_from_uniform(float u) { return -std::log(-std::log(u)); }

void gumbel_row(const GumbelKey& key, std::int64_t first, std::int64_t count, float* out) {
  fastest().gumbel_row(philox_row(key), first, count, out);
}

void gumbel_gather(const GumbelKey& key, std::span<const std::int32_t> positions, float* out) {
  fastest().gumbel_gather(
      philox_row(key), positions.data(), static_cast<std::int64_t>(positions.size()), out);
}

float gumbel_at(const GumbelKey& key, std::int64_t position) {
  float draw = 0.0F;
  gumbel_row(key, position, 1, &draw);
  return draw;
}

}  // namespace hybridgen::kernels
