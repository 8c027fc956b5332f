// SPDX-License-Identifier: Apache-2.0
// Keyformer's scores: Gumbel noise (see gumbel.h, its scalar twin) and the tempered softmax over
// perturbed logits. Every draw goes through the same operations, wherever in a range or a vector it
// stands, so that a split changes nothing. Loops are short on purpose: what one element takes is a
// long chain of operations, and a core overlaps more elements of a short one.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

typedef std::uint32_t HashLanes __attribute__((vector_size(sizeof(Vector))));
typedef float FloatLanes __attribute__((vector_size(sizeof(Vector))));

/// Calls visit(j, left) for every vector of `count` values; `left` is constant but for the last.
template <typename Visit>
HYBRIDGEN_INLINE void for_lanes(std::int64_t count, const Visit& visit) {
  std::int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) visit(j, std::int64_t{kLanes});
  if (j < count) visit(j, count - j);
}

constexpr float kLn2 = 0.693147181F;

/// MurmurHash3's finalizer with a key before it and another within.
HYBRIDGEN_INLINE HashLanes bits_of(const GumbelRow& row, HashLanes positions) {
  HashLanes x = positions + row.keys[0];
  x ^= x >> 16;
  x *= 0x85ebca6bU;
  x ^= row.keys[1];
  x ^= x >> 13;
  x *= 0xc2b2ae35U;
  return x ^ (x >> 16);
}

/// -ln u of the draws at `positions`. 23 bits and a half make u: never 0 or 1 in float32, and
/// symmetric about 1/2.
HYBRIDGEN_INLINE Vector exponential_of(const GumbelRow& row, HashLanes positions) {
  typedef std::int32_t IntLanes __attribute__((vector_size(sizeof(Vector))));
  const auto bits = reinterpret_cast<IntLanes>(bits_of(row, positions) >> 9);
  const auto count = reinterpret_cast<Vector>(__builtin_convertvector(bits, FloatLanes));
  return mul(log2_of(fma(count, splat(0x1p-23F), splat(0x1p-24F))), splat(-kLn2));
}

void gumbel_row(const GumbelRow& row, std::int64_t first, std::int64_t count, float* out) {
  const GumbelRow keys = row;  // the compiler need not fear that a store changes it
  for_lanes(count, [&](std::int64_t j, std::int64_t left) {
    HashLanes positions;
    for (int lane = 0; lane < kLanes; ++lane) {
      positions[lane] = static_cast<std::uint32_t>(first + j + lane);
    }
    store_up_to(out + j, left, exponential_of(keys, positions));
  });
  for_lanes(count, [&](std::int64_t j, std::int64_t left) {
    store_up_to(out + j, left, mul(log2_of(load_up_to(out + j, left, 1.0F)), splat(-kLn2)));
  });
}

void exponential_gather(const GumbelRow& row,
                        const std::int32_t* positions,
                        std::int64_t count,
                        float* out) {
  const GumbelRow keys = row;
  for_lanes(count, [&](std::int64_t j, std::int64_t left) {
    HashLanes here = {};
    __builtin_memcpy(&here, positions + j, static_cast<std::size_t>(left) * sizeof(*positions));
    store_up_to(out + j, left, exponential_of(keys, here));
  });
}

float tempered_softmax(
    const float* weights, const float* exponentials, float tau, std::int64_t count, float* scores) {
  // Any weight below this is as good as 0, whose logarithm is not a number to go on with.
  const Vector least = splat(1.17549435e-38F);
  // A lower temperature makes no difference, and its inverse might not be finite.
  const Vector inverse_tau = splat(1.0F / (tau < 1e-30F ? 1e-30F : tau));
  constexpr float kLowest = -3.0e38F;
  Vector largest = splat(kLowest);
  const auto to_logits = [&](const auto& odds_at) {
    for_lanes(count, [&](std::int64_t j, std::int64_t left) {
      const Vector score = log2_of(max_of(least, odds_at(j, left)));
      store_up_to(scores + j, left, score);
      largest = max_of(largest, left == kLanes ? score : load_up_to(scores + j, left, kLowest));
    });
  };
  if (exponentials == nullptr) {
    to_logits([&](std::int64_t j, std::int64_t left) { return load_up_to(weights + j, left); });
  } else {
    // ln w + noise = ln(w / e) of an exponential e: one logarithm for both.
    to_logits([&](std::int64_t j, std::int64_t left) {
      return div(load_up_to(weights + j, left), load_up_to(exponentials + j, left, 1.0F));
    });
  }
  const Vector peak = splat(max_lane(largest));
  Vector sums = zero();
  Vector nan = zero();
  for_lanes(count, [&](std::int64_t j, std::int64_t left) {
    const Vector weight = load_up_to(weights + j, left);
    const Vector below = sub(load_up_to(scores + j, left), peak);
    const Vector score = zero_where_below(exp2_of(mul(below, inverse_tau)), weight, least);
    store_up_to(scores + j, left, score);
    sums = add(sums, score);
    nan = fma(weight, zero(), nan);
  });
  return sum_lanes(add(sums, nan));
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
