// SPDX-License-Identifier: Apache-2.0
// How many of the largest softmax weights have a given sum: against sorted sums in float64.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"
#include "kernel_test_support.h"

namespace hybridgen::kernels::test {
namespace {

float log_sum(const std::vector<float>& scores) {
  return cpu_kernels(Isa::kPortable)
      .log_sum_exp(scores.data(), static_cast<std::int64_t>(scores.size()));
}

std::int64_t count(const std::vector<float>& scores,
                   double mass,
                   std::int64_t most = std::numeric_limits<std::int32_t>::max()) {
  const auto n = static_cast<std::int64_t>(scores.size());
  std::vector<float> weights(scores.size());
  cpu_kernels(Isa::kPortable).softmax_weights(scores.data(), n, log_sum(scores), weights.data());
  std::vector<float> scratch;
  return count_mass(weights.data(), n, mass, most, scratch);
}

/// Of a share: log_sum, a score less that and its exponential are float32 numbers.
double tolerance(float log_sum) {
  return std::numeric_limits<float>::epsilon() * (8.0 + 2.0 * std::abs(double{log_sum}));
}

/// Shares of the softmax of the 0, 1, ... largest scores.
std::vector<double> sums_of_largest(std::vector<float> scores) {
  std::sort(scores.begin(), scores.end(), std::greater<>());
  std::vector<double> sums{0.0};
  for (const float score : scores) {
    sums.push_back(sums.back() + std::exp(double{score} - double{scores.front()}));
  }
  for (double& sum : sums) sum /= sums.back();
  return sums;
}

void expect_fewest(const std::vector<float>& scores, const std::string& what) {
  const std::vector<double> sums = sums_of_largest(scores);
  const double error = tolerance(log_sum(scores));
  std::int64_t before = 1;
  for (const double mass : {1e-6, 0.1, 0.5, 0.9, 0.99, 0.9999}) {
    const std::int64_t found = count(scores, mass);
    ASSERT_GE(found, before) << what << ": more mass takes no fewer, " << mass;
    ASSERT_LE(found, static_cast<std::int64_t>(scores.size()));
    const auto place = static_cast<std::size_t>(found);
    EXPECT_GE(sums[place], mass - error) << what << ", mass " << mass;
    if (found > 1) {
      EXPECT_LT(sums[place - 1], mass + error) << what << ", mass " << mass;
    }
    for (const std::int64_t most : {std::int64_t{1}, found - 1, found, found + 1}) {
      if (most < 1) continue;
      EXPECT_EQ(count(scores, mass, most), std::min(most, found)) << what << ", at most " << most;
    }
    before = found;
  }
}

constexpr std::int64_t kSizes[] = {1, 2, 15, 17, 100, 4097, 20000};

TEST(CountMass, TakesTheFewestOfRandomScores) {
  for (const std::int64_t n : kSizes) {
    for (const float scale : {0.01F, 1.0F, 8.0F, 60.0F}) {
      std::vector<float> scores = random_floats(n, 50);
      for (float& score : scores) score *= scale;
      expect_fewest(scores, message("n ", n, ", scale ", scale));
      for (float& score : scores) score += 1000.0F;
      expect_fewest(scores, message("n ", n, ", scale ", scale, ", far from 0"));
    }
  }
}

TEST(CountMass, TakesAShareOfEqualScores) {
  const std::vector<float> scores(1000, -3.0F);
  EXPECT_NEAR(static_cast<double>(count(scores, 0.25)), 250.0, 1.0);
  EXPECT_NEAR(static_cast<double>(count(scores, 0.999)), 999.0, 1.0);
  expect_fewest(scores, "equal");
}

TEST(CountMass, TakesOneThatHasAlmostAll) {
  std::vector<float> scores = random_floats(5000, 51);
  scores[4321] = 100.0F;
  EXPECT_EQ(count(scores, 0.9999), 1);
  scores[17] = 100.0F;
  EXPECT_EQ(count(scores, 0.4999), 1);
  EXPECT_EQ(count(scores, 0.5001), 2);
}

TEST(CountMass, PassesOverMinusInfinity) {
  std::vector<float> scores = random_floats(3000, 52);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (i % 7 != 2) scores[i] = -kInfinity;
  }
  expect_fewest(scores, "mostly -inf");
}

TEST(CountMass, TakesOneWhereThereIsNoSoftmax) {
  EXPECT_EQ(count(std::vector<float>(50, -kInfinity), 0.9), 1);
  std::vector<float> scores = random_floats(50, 53);
  scores[20] = kInfinity;
  EXPECT_EQ(count(scores, 0.9), 1);
  scores[20] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(count(scores, 0.9), 1);
  EXPECT_EQ(count({}, 0.9), 0);
}

}  // namespace
}  // namespace hybridgen::kernels::test
