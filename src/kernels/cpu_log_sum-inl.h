// SPDX-License-Identifier: Apache-2.0
// Log-sum-exp of a row of logits, for a row that is read once and is not to change.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

/// Logits that are looked at together: in the first level of the cache while they are read again,
/// and few enough that a lane does not add small numbers to a large one.
constexpr std::int64_t kSummedLogits = 2048;

float log_sum_exp(const float* logits, std::int64_t count) {
  constexpr float kNone = -__builtin_inff();
  constexpr float kLog2E = 1.44269504F;
  constexpr int kChains = 4;  // whose additions do not wait for each other
  float peak = kNone;
  float sum = 0.0F;
  for (std::int64_t begin = 0; begin < count; begin += kSummedLogits) {
    const std::int64_t end = min_of(count, begin + kSummedLogits);
    // A NaN is passed over here, and makes the sum NaN.
    const auto for_vectors = [&](const auto& visit) {
      std::int64_t i = begin;
      for (; i + kChains * kLanes <= end; i += kChains * kLanes) {
#pragma GCC unroll 4
        for (int chain = 0; chain < kChains; ++chain)
          visit(chain, load(logits + i + chain * kLanes));
      }
      for (; i < end; i += kLanes) visit(0, load_up_to(logits + i, end - i, kNone));
    };
    Vector largest[kChains] = {splat(peak), splat(peak), splat(peak), splat(peak)};
    for_vectors([&](int chain, Vector v) { largest[chain] = max_of(v, largest[chain]); });
    const float higher =
        max_lane(max_of(max_of(largest[0], largest[1]), max_of(largest[2], largest[3])));
    // With every logit at -inf, -inf - 0 keeps the terms at 0 where -inf - -inf would give NaN.
    const Vector shift = splat(higher == kNone ? 0.0F : higher);
    Vector sums[kChains] = {zero(), zero(), zero(), zero()};
    for_vectors([&](int chain, Vector v) {
      sums[chain] = add(sums[chain], exp2_of(mul(sub(v, shift), splat(kLog2E))));
    });
    const float of_block = sum_lanes(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
    sum = (sum == 0.0F ? 0.0F : sum * __builtin_expf(peak - higher)) + of_block;
    peak = higher;
  }
  return sum == 0.0F ? kNone : peak + __builtin_logf(sum);
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
