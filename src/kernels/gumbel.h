// SPDX-License-Identifier: Apache-2.0
// Standard Gumbel noise from a counter: a draw depends on what it is for, not on when or by whom it
// is made. Philox4x32-10 turns what a row is for (seed, request, layer, head, row) into two keys;
// with them a token's position is hashed to 32 bits. A draw takes two multiplications in 32-bit
// lanes, wherever the token lies; Philox takes twenty in 64-bit lanes and makes four neighbours at
// once, of which scattered tokens use one.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {

/// What a row of draws is for. Layer, head and row count in their lower 32 bits. All query heads of
/// a KV head share its draws, as they share its tokens: independent ones would average out in the
/// sum of their scores, the more the larger the group.
struct GumbelKey {
  std::uint64_t seed = 0;
  std::uint64_t request = 0;
  std::int64_t layer = 0;
  std::int64_t kv_head = 0;
  std::int64_t row = 0;  ///< absolute position of the query token
};

/// What the draws of `key` share, for CpuKernels::gumbel_row and exponential_gather. The functions
/// below use the strongest instruction set; sets differ in the last bits.
GumbelRow gumbel_keys(const GumbelKey& key);

/// The random bits of the token at `position`; the upper 23 become a draw.
std::uint32_t gumbel_bits(const GumbelRow& row, std::uint32_t position);

/// -ln(-ln u) with u in (0, 1).
float gumbel_from_uniform(float u);

/// out[j] = draw of `key` for the token at position first + j: any split of a range gives the same
/// draws. They are finite.
void gumbel_row(const GumbelKey& key, std::int64_t first, std::int64_t count, float* out);

/// The same draw for one token.
float gumbel_at(const GumbelKey& key, std::int64_t position);

/// out[j] = e^-gumbel_at(key, positions[j]): standard exponential draws.
void exponential_gather(const GumbelKey& key, std::span<const std::int32_t> positions, float* out);

}  // namespace hybridgen::kernels
