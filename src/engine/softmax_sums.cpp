// SPDX-License-Identifier: Apache-2.0
#include "engine/softmax_sums.h"

#include <array>
#include <cmath>

namespace hybridgen {
namespace {

constexpr std::size_t kSumLanes = 16;  // independent partial results, so that loops vectorise
static_assert(kLogitBlock % kSumLanes == 0);

}  // namespace

// In float: of so few, the error stays below 1e-5 of their sum.
double block_sum(std::span<const float> block, const SoftmaxWeights& weights) {
  std::array<float, kLogitBlock> values;
  const SoftmaxWeights local = weights;  // nothing else can refer to it, so it stays in registers
  const float* const logits = block.data();
  for (std::size_t i = 0; i < block.size(); ++i) values[i] = local(logits[i]);
  const std::size_t padded = (block.size() + kSumLanes - 1) / kSumLanes * kSumLanes;
  std::fill(values.begin() + static_cast<std::ptrdiff_t>(block.size()),
            values.begin() + static_cast<std::ptrdiff_t>(padded),
            0.0F);
  std::array<float, kSumLanes> lanes{};
  for (std::size_t i = 0; i < padded; i += kSumLanes) {
    for (std::size_t lane = 0; lane < kSumLanes; ++lane) lanes[lane] += values[i + lane];
  }
  double total = 0.0;
  for (const float lane : lanes) total += static_cast<double>(lane);
  return total;
}

std::span<const float> block_at(std::span<const float> logits, std::size_t begin) {
  return logits.subspan(begin, std::min(kLogitBlock, logits.size() - begin));
}

double sum_of_weights(std::span<const float> logits, const SoftmaxWeights& weights) {
  double total = 0.0;
  for (std::size_t begin = 0; begin < logits.size(); begin += kLogitBlock) {
    total += block_sum(block_at(logits, begin), weights);
  }
  return total;
}

// Written so that it becomes vector maxima.
float largest_logit(std::span<const float> logits) {
  std::array<float, kSumLanes> lanes;
  lanes.fill(-std::numeric_limits<float>::infinity());
  std::array<std::uint32_t, kSumLanes> unordered{};
  std::size_t i = 0;
  for (; i + kSumLanes <= logits.size(); i += kSumLanes) {
    for (std::size_t lane = 0; lane < kSumLanes; ++lane) {
      const float x = logits[i + lane];
      lanes[lane] = x > lanes[lane] ? x : lanes[lane];
      unordered[lane] |= static_cast<std::uint32_t>(x != x);
    }
  }
  for (std::size_t lane = 0; i < logits.size(); ++i, ++lane) {
    lanes[lane] = std::max(lanes[lane], logits[i]);
    unordered[lane] |= std::isnan(logits[i]) ? 1U : 0U;
  }
  for (const std::uint32_t bad : unordered) {
    if (bad != 0) return std::numeric_limits<float>::quiet_NaN();
  }
  return *std::max_element(lanes.begin(), lanes.end());
}

}  // namespace hybridgen
