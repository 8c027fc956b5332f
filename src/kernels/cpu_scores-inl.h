// SPDX-License-Identifier: Apache-2.0
// Keyformer's scores: Gumbel noise from Philox4x32-10 (see core/philox.h, its scalar twin) and the
// tempered softmax over perturbed logits. Every draw goes through the same operations, wherever in
// a range or a vector it stands, so that a split changes nothing.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

constexpr int kPhiloxBlocks = 16;  ///< blocks of four draws at a time
constexpr int kPhiloxWords = 4;
constexpr int kWideLanes = sizeof(WideVector) / sizeof(std::uint64_t);

/// words[w][b] = word w of the block with counter[0] = blocks[b]. A word is the low half of its 64
/// bits; what the high half holds is never looked at.
HYBRIDGEN_INLINE void philox_blocks(const PhiloxRow& row,
                                    const std::uint64_t* blocks,
                                    std::uint64_t (*words)[kPhiloxBlocks]) {
  for (int first = 0; first < kPhiloxBlocks; first += kWideLanes) {
    WideVector word[kPhiloxWords] = {read_as<WideVector>(blocks + first)};
    for (int w = 1; w < kPhiloxWords; ++w) word[w] = WideVector{} + row.counter[w - 1];
    std::uint32_t key0 = row.key[0];
    std::uint32_t key1 = row.key[1];
    for (int round = 0; round < 10; ++round) {
      const WideVector product0 = multiply_low(word[0], 0xD2511F53);
      const WideVector product1 = multiply_low(word[2], 0xCD9E8D57);
      word[0] = (product1 >> 32) ^ word[1] ^ key0;
      word[1] = product1;
      word[2] = (product0 >> 32) ^ word[3] ^ key1;
      word[3] = product0;
      key0 += 0x9E3779B9;
      key1 += 0xBB67AE85;
    }
    for (int w = 0; w < kPhiloxWords; ++w) write_as(words[w] + first, word[w]);
  }
}

/// 23 bits and a half: never 0 or 1 in float32, and symmetric about 1/2.
HYBRIDGEN_INLINE float uniform_of(std::uint64_t word) {
  const auto bits = static_cast<std::int32_t>(static_cast<std::uint32_t>(word) >> 9);
  return (static_cast<float>(bits) + 0.5F) * 0x1p-23F;
}

/// out = -ln(-ln u), in place.
HYBRIDGEN_INLINE void to_gumbel(float* u, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const std::int64_t left = count - i;
    const Vector inner = sub(zero(), log_of(load_up_to(u + i, left, 0.5F)));
    store_up_to(u + i, left, sub(zero(), log_of(inner)));
  }
}

void gumbel_row(const PhiloxRow& row, std::int64_t first, std::int64_t count, float* out) {
  constexpr std::int64_t kStep = std::int64_t{kPhiloxBlocks} * kPhiloxWords;
  if (count == 0) return;  // `out` may be null
  for (std::int64_t begin = first / kStep * kStep; begin < first + count; begin += kStep) {
    std::uint64_t blocks[kPhiloxBlocks];
    std::uint64_t words[kPhiloxWords][kPhiloxBlocks];
    for (int b = 0; b < kPhiloxBlocks; ++b) {
      blocks[b] = static_cast<std::uint64_t>(begin / kPhiloxWords + b);
    }
    philox_blocks(row, blocks, words);
    float draws[extent(kStep)];
    for (int b = 0; b < kPhiloxBlocks; ++b) {
      for (int w = 0; w < kPhiloxWords; ++w) draws[b * kPhiloxWords + w] = uniform_of(words[w][b]);
    }
    to_gumbel(draws, kStep);
    const std::int64_t from = begin < first ? first - begin : 0;
    const std::int64_t to = min_of(kStep, first + count - begin);
    __builtin_memcpy(out + (begin + from - first),
                     draws + from,
                     static_cast<std::size_t>(to - from) * sizeof(float));
  }
}

void gumbel_gather(const PhiloxRow& row,
                   const std::int32_t* positions,
                   std::int64_t count,
                   float* out) {
  for (std::int64_t j = 0; j < count; j += kPhiloxBlocks) {
    const std::int64_t here = min_of(kPhiloxBlocks, count - j);
    std::uint32_t place[kPhiloxBlocks] = {};
    __builtin_memcpy(place, positions + j, static_cast<std::size_t>(here) * sizeof(place[0]));
    std::uint64_t blocks[kPhiloxBlocks];
    std::uint64_t words[kPhiloxWords][kPhiloxBlocks];
    for (int b = 0; b < kPhiloxBlocks; ++b) blocks[b] = place[b] / kPhiloxWords;
    philox_blocks(row, blocks, words);
    float draws[kPhiloxBlocks];
    for (int b = 0; b < kPhiloxBlocks; ++b) {
      const std::uint64_t low = (place[b] & 1U) != 0 ? words[1][b] : words[0][b];
      const std::uint64_t high = (place[b] & 1U) != 0 ? words[3][b] : words[2][b];
      draws[b] = uniform_of((place[b] & 2U) != 0 ? high : low);
    }
    to_gumbel(draws, kPhiloxBlocks);
    __builtin_memcpy(out + j, draws, static_cast<std::size_t>(here) * sizeof(float));
  }
}

/// Calls visit(j, left) for every vector of `count` values; `left` is constant but for the last.
template <typename Visit>
HYBRIDGEN_INLINE void for_lanes(std::int64_t count, const Visit& visit) {
  std::int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) visit(j, std::int64_t{kLanes});
  if (j < count) visit(j, count - j);
}

void keyformer_scores(const float* weights, float tau, std::int64_t count, float* scores) {
  // Any weight below this is as good as 0, whose logarithm is not a number to go on with.
  const Vector least = splat(1.17549435e-38F);
  // A lower temperature makes no difference, and its inverse might not be finite.
  const Vector inverse_tau = splat(1.0F / (tau < 1e-30F ? 1e-30F : tau));
  constexpr float kLowest = -3.0e38F;
  Vector largest = splat(kLowest);
  for_lanes(count, [&](std::int64_t j, std::int64_t left) {
    const Vector weight = max_of(least, load_up_to(weights + j, left));
    const Vector score = add(log_of(weight), load_up_to(scores + j, left));
    store_up_to(scores + j, left, score);
    largest = max_of(largest, left == kLanes ? score : load_up_to(scores + j, left, kLowest));
  });
  const Vector peak = splat(max_lane(largest));
  Vector sums = zero();
  for_lanes(count, [&](std::int64_t j, std::int64_t left) {
    const Vector below = sub(load_up_to(scores + j, left), peak);
    const Vector score = exp_of(mul(below, inverse_tau));
    const Vector counted = zero_where_below(score, load_up_to(weights + j, left), least);
    store_up_to(scores + j, left, counted);
    sums = add(sums, counted);
  });
  const float total = sum_lanes(sums);
  const Vector scale = splat(total == 0.0F ? 0.0F : 1.0F / total);
  for_lanes(count, [&](std::int64_t j, std::int64_t left) {
    store_up_to(scores + j, left, mul(load_up_to(scores + j, left), scale));
  });
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
