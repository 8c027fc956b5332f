// SPDX-License-Identifier: Apache-2.0
// Standard Gumbel noise from a counter: a draw depends on what it is for, not on when or by whom it
// is made.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {

/// What a row of draws is for. Layer, head and row count in their lower 32 bits.
struct GumbelKey {
  std::uint64_t seed = 0;
  std::uint64_t request = 0;
  std::int64_t layer = 0;
  std::int64_t query_head = 0;
  std::int64_t row = 0;  ///< absolute position of the query token
};

/// What the draws of `key` share in Philox, for CpuKernels::gumbel_row and gumbel_gather. The
/// functions below use the strongest instruction set; sets differ in the last bits.
PhiloxRow philox_row(const GumbelKey& key);

/// -ln(-ln u) with u in (0, 1).
float gumbel_from_uniform(float u);

/// out[j] = draw of `key` for the token at position first + j. Philox 4x32-10, four tokens a block:
/// any split of a range gives the same draws. They are finite.
void gumbel_row(const GumbelKey& key, std::int64_t first, std::int64_t count, float* out);

/// The same draw for one token.
float gumbel_at(const GumbelKey& key, std::int64_t position);

/// out[j] = gumbel_at(key, positions[j]).
void gumbel_gather(const GumbelKey& key, std::span<const std::int32_t> positions, float* out);

}  // namespace hybridgen::kernels
