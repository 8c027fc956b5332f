// SPDX-License-Identifier: Apache-2.0
// Sums of exponentials and the largest of a row of logits, in plain arithmetic that compilers
// vectorise for any machine. Not by kernels/simd.h, which is for files that are compiled once per
// instruction set: its sums differ in their last bits from one set to the next, and the same seed
// shall draw the same token on all machines.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

namespace hybridgen {

constexpr std::size_t kLogitBlock = 1024;  ///< logits that are summed at a time

/// `value` or 0, by a mask: where compilers see a branch they do not vectorise.
inline float value_if(bool condition, float value) {
  const std::uint32_t mask = 0U - static_cast<std::uint32_t>(condition);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) & mask);
}

/// exp(x) for x <= 0, relative error below 3e-7, 0 below -87. Plain arithmetic without branches:
/// compilers vectorise it, and a vocabulary has 100000 of them in every step.
inline float exp_nonpositive(float x) {
  constexpr float kLog2E = 1.44269504F;
  constexpr float kLn2High = 0.693359375F;
  constexpr float kLn2Low = -2.12194440e-4F;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = x * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.98756915e-4F;
  p = p * r + 1.39819994e-3F;
  p = p * r + 8.33345190e-3F;
  p = p * r + 4.16657962e-2F;
  p = p * r + 1.66666655e-1F;
  p = p * r + 5.00000012e-1F;
  p = p * r * r + r + 1.0F;
  const std::uint32_t exponent = std::bit_cast<std::uint32_t>(shifted) << 23;  // n * 2^23, mod 2^32
  const float result = std::bit_cast<float>(std::bit_cast<std::uint32_t>(p) + exponent);
  return value_if(x > -87.0F, result);  // below, `result` is garbage
}

/// exp((logit - peak) / temperature) of every logit that may be chosen.
struct SoftmaxWeights {
  SoftmaxWeights(float largest, float temperature)
      : peak(largest),
        // A tiny temperature must not make 0 * inf of the largest logit.
        scale(std::min(1.0F / temperature, std::numeric_limits<float>::max())) {}

  float operator()(float logit) const {
    const float weight = exp_nonpositive((logit - peak) * scale);
    const bool kept = (logit > cutoff) | ((logit == cutoff) & ties);
    return value_if(kept & (weight >= least), weight);
  }

  float peak;
  float scale;
  float cutoff = -std::numeric_limits<float>::infinity();  ///< lower logits weigh nothing
  bool ties = true;    ///< whether logits equal to the cutoff weigh anything
  float least = 0.0F;  ///< nor do lower weights; the peak's is 1
};

/// Sum over at most kLogitBlock logits.
double block_sum(std::span<const float> block, const SoftmaxWeights& weights);

/// At most kLogitBlock logits from `begin` on.
std::span<const float> block_at(std::span<const float> logits, std::size_t begin);

double sum_of_weights(std::span<const float> logits, const SoftmaxWeights& weights);

/// Largest value; NaN if there is any NaN.
float largest_logit(std::span<const float> logits);

}  // namespace hybridgen
