// SPDX-License-Identifier: Apache-2.0
#include "kernels/gumbel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {
namespace {

std::vector<float> row(const GumbelKey& key, std::int64_t first, std::int64_t count) {
  std::vector<float> draws(static_cast<std::size_t>(count));
  gumbel_row(key, first, count, draws.data());
  return draws;
}

TEST(GumbelFromUniform, IsTheInverseOfTheStandardGumbelDistribution) {
  EXPECT_NEAR(gumbel_from_uniform(0.5F), 0.366513, 1e-6);
  EXPECT_NEAR(gumbel_from_uniform(std::exp(-1.0F)), 0.0, 1e-6);
  EXPECT_NEAR(gumbel_from_uniform(0.9F), 2.250367, 2e-6);
}

TEST(Gumbel, DrawsAreWhatACalculationApartFromThisCodeGives) {
  const auto expect_draws = [](const std::vector<float>& draws, std::vector<double> expected) {
    ASSERT_EQ(draws.size(), expected.size());
    for (std::size_t j = 0; j < expected.size(); ++j) EXPECT_NEAR(draws[j], expected[j], 2e-6);
  };
  expect_draws(row({}, 0, 4), {4.227094, -0.499999, 1.418634, 1.749309});
  expect_draws(row({.seed = 1, .request = 2, .layer = 3, .kv_head = 4, .row = 100}, 97, 4),
               {3.181918, 1.301540, 0.618051, 1.652634});
  expect_draws(row({.seed = ~std::uint64_t{0},
                    .request = std::uint64_t{1} << 63,
                    .layer = 31,
                    .kv_head = 63,
                    .row = 131071},
                   131071,
                   1),
               {-1.711248});
}

TEST(Gumbel, HasTheMeanVarianceAndQuantilesOfTheDistribution) {
  constexpr std::int64_t kRows = 1000;
  constexpr std::int64_t kColumns = 1000;
  double sum = 0.0;
  double squares = 0.0;
  double below_zero = 0.0;
  double above_three = 0.0;
  for (std::int64_t i = 0; i < kRows; ++i) {
    for (const float draw : row({.seed = 8, .row = i}, 0, kColumns)) {
      ASSERT_TRUE(std::isfinite(draw));
      sum += draw;
      squares += double{draw} * draw;
      below_zero += draw < 0.0F;
      above_three += draw > 3.0F;
    }
  }
  // Tolerances are five standard deviations of what a million draws give.
  const double count = kRows * kColumns;
  const double mean = sum / count;
  EXPECT_NEAR(mean, 0.577216, 5 * 1.2825e-3);
  EXPECT_NEAR(squares / count - mean * mean, 1.644934, 5 * 3.5e-3);
  EXPECT_NEAR(below_zero / count, std::exp(-1.0), 5 * 0.5e-3);
  EXPECT_NEAR(above_three / count, 1.0 - std::exp(-std::exp(-3.0)), 5 * 0.3e-3);
}

TEST(GumbelRow, GivesTheSameDrawsHoweverARangeIsSplit) {
  const GumbelKey key{.seed = 3, .request = 9, .layer = 2, .kv_head = 5, .row = 41};
  const std::vector<float> whole = row(key, 0, 41);
  for (std::int64_t first = 0; first <= 41; ++first) {
    for (std::int64_t end = first; end <= 41; ++end) {
      const std::vector<float> part = row(key, first, end - first);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first))
          << first << " to " << end;
    }
  }
}

TEST(GumbelRow, IsTheBitsThroughTwoLogarithmsOnEveryInstructionSet) {
  const GumbelRow keys =
      gumbel_keys({.seed = 5, .request = 2, .layer = 3, .kv_head = 7, .row = 1234});
  constexpr std::int64_t kCount = 1000;
  constexpr std::int64_t kFirst = 77;
  std::vector<std::int32_t> positions;
  for (std::int32_t j = 0; j < kCount; ++j) positions.push_back(kFirst + (j * 389) % kCount);
  const auto exponential = [&](std::int64_t position) {
    const double u =
        ((gumbel_bits(keys, static_cast<std::uint32_t>(position)) >> 9) + 0.5) * 0x1p-23;
    return -std::log(u);
  };
  for (const Isa isa : supported_isas()) {
    const CpuKernels& kernels = cpu_kernels(isa);
    std::vector<float> draws(kCount);
    std::vector<float> gathered(kCount);
    kernels.gumbel_row(keys, kFirst, kCount, draws.data());
    kernels.exponential_gather(keys, positions.data(), kCount, gathered.data());
    for (std::int64_t j = 0; j < kCount; ++j) {
      // Each logarithm is right to 2e-7 of its value; the first one's error comes out as it is.
      const double expected = -std::log(exponential(kFirst + j));
      const double tolerance = 4e-7 + 4e-7 * std::abs(expected);
      EXPECT_NEAR(draws[static_cast<std::size_t>(j)], expected, tolerance) << name_of(isa);
    }
    for (std::size_t j = 0; j < positions.size(); ++j) {
      const double expected = exponential(positions[j]);
      EXPECT_NEAR(gathered[j], expected, 4e-7 * expected)
          << name_of(isa) << ", position " << positions[j];
    }
  }
}

TEST(KeyformerScores, AreTheTemperedSoftmaxOnEveryInstructionSet) {
  constexpr double kTau = 1.7;
  for (const Isa isa : supported_isas()) {
    for (const std::size_t count : {1U, 7U, 16U, 33U, 500U}) {
      std::vector<float> weights(count);
      const std::vector<float> noise = row({.seed = 3}, 0, static_cast<std::int64_t>(count));
      std::vector<float> scores(count);
      std::vector<double> expected(count);
      double total = 0.0;
      for (std::size_t j = 0; j < count; ++j) {
        weights[j] = j % 5 == 3 ? 0.0F : std::exp(-0.1F * static_cast<float>(j % 100));
        scores[j] = std::exp(-noise[j]);
        expected[j] = std::exp((std::log(double{weights[j]}) + noise[j]) / kTau);
        total += expected[j];
      }
      const float sum = cpu_kernels(isa).tempered_softmax(
          weights.data(), scores.data(), kTau, static_cast<std::int64_t>(count), scores.data());
      for (std::size_t j = 0; j < count; ++j) {
        // Logits of size 12 / tau rounded to float32, then e to their power.
        EXPECT_NEAR(scores[j] / sum, expected[j] / total, 2e-6 * expected[j] / total)
            << name_of(isa) << ", " << count << " tokens, token " << j;
      }
    }
  }
}

TEST(KeyformerScores, WithoutNoiseAreThoseOfExponentialsThatAreOne) {
  const std::vector<float> weights = {0.5F, 0.0F, 0.125F, 0.25F, 0.125F};
  const std::vector<float> ones(5, 1.0F);
  for (const Isa isa : supported_isas()) {
    std::vector<float> plain(5);
    std::vector<float> scores(5);
    const CpuKernels& kernels = cpu_kernels(isa);
    EXPECT_EQ(kernels.tempered_softmax(weights.data(), nullptr, 1.5F, 5, plain.data()),
              kernels.tempered_softmax(weights.data(), ones.data(), 1.5F, 5, scores.data()));
    EXPECT_EQ(plain, scores) << name_of(isa);
  }
}

TEST(KeyformerScores, AddUpToNaNIfAWeightIs) {
  const std::vector<float> weights = {0.25F, std::nanf(""), 0.5F};
  const std::vector<float> ones(3, 1.0F);
  for (const Isa isa : supported_isas()) {
    for (const float* exponentials : {static_cast<const float*>(nullptr), ones.data()}) {
      std::vector<float> scores(3);
      EXPECT_TRUE(std::isnan(
          cpu_kernels(isa).tempered_softmax(weights.data(), exponentials, 2.0F, 3, scores.data())))
          << name_of(isa);
    }
  }
}

TEST(GumbelAt, IsTheRowsDraw) {
  const GumbelKey key{.seed = 3, .request = 9, .layer = 2, .kv_head = 5, .row = 41};
  const std::vector<float> whole = row(key, 0, 41);
  for (std::size_t j = 0; j < whole.size(); ++j) {
    EXPECT_EQ(gumbel_at(key, static_cast<std::int64_t>(j)), whole[j]);
  }
}

TEST(ExponentialGather, GivesEveryTokenItsDrawInAnyOrder) {
  const GumbelKey key{.seed = 3, .row = 41};
  const std::vector<std::int32_t> positions = {0, 1, 2, 3, 7, 40, 38, 39, 5, 5, 0, 2147483647};
  std::vector<float> draws(positions.size());
  exponential_gather(key, positions, draws.data());
  for (std::size_t j = 0; j < positions.size(); ++j) {
    const double draw = gumbel_at(key, positions[j]);
    EXPECT_NEAR(-std::log(double{draws[j]}), draw, 1e-6) << "position " << positions[j];
  }
}

TEST(Gumbel, DependsOnEveryPartOfTheKeyAndOnThePosition) {
  const GumbelKey key{.seed = 1, .request = 1, .layer = 1, .kv_head = 1, .row = 1};
  std::vector<GumbelKey> keys(8, key);
  keys[1].seed = 2;
  keys[2].seed = (std::uint64_t{1} << 32) + 1;
  keys[3].request = 2;
  keys[4].request = (std::uint64_t{1} << 32) + 1;
  keys[5].layer = 2;
  keys[6].kv_head = 2;
  keys[7].row = 2;
  std::vector<float> draws;
  for (const GumbelKey& one : keys) {
    const std::vector<float> some = row(one, 0, 100);
    draws.insert(draws.end(), some.begin(), some.end());
  }
  // 2^23 values are possible; chance alone makes very few of 800 draws equal.
  std::sort(draws.begin(), draws.end());
  EXPECT_LE(draws.end() - std::unique(draws.begin(), draws.end()), 3);
}

TEST(Gumbel, NeighboursAreUncorrelated) {
  constexpr std::int64_t kCount = 100000;
  const GumbelKey key{.seed = 6, .layer = 4, .kv_head = 4, .row = 4};
  const std::vector<float> draws = row(key, 0, kCount);
  GumbelKey next_row = key;
  next_row.row = 5;
  GumbelKey next_head = key;
  next_head.kv_head = 5;
  GumbelKey next_request = key;
  next_request.request = 1;
  const auto correlation = [&](const std::vector<float>& others) {
    double sum = 0.0;
    for (std::size_t j = 0; j < draws.size(); ++j) {
      sum += (draws[j] - 0.577216) * (others[j] - 0.577216);
    }
    return sum / 1.644934 / static_cast<double>(kCount);
  };
  for (const std::vector<float>& others : {row(key, 1, kCount),
                                           row(key, 4, kCount),
                                           row(next_row, 0, kCount),
                                           row(next_head, 0, kCount),
                                           row(next_request, 0, kCount)}) {
    EXPECT_LT(std::abs(correlation(others)), 0.016);
  }
}

}  // namespace
}  // namespace hybridgen::kernels
