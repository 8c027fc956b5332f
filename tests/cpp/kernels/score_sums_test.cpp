// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {
namespace {

struct Tokens {
  std::int64_t stride = 0;    // of `rows`, with a gap between them
  std::vector<float> rows;    // one per scale
  std::vector<float> scales;  // powers of two: products are exact
  std::vector<double> accumulated;
  std::vector<std::int32_t> positions;

  /// Few different scores, so that there are ties.
  Tokens(std::int64_t count, std::int64_t num_rows, std::uint32_t seed) : stride(count + 3) {
    std::mt19937 generator(seed);
    const auto draw = [&] { return static_cast<float>(generator() % 7) / 8.0F; };
    for (std::int64_t j = 0; j < num_rows * stride; ++j) rows.push_back(draw());
    for (std::int64_t r = 0; r < num_rows; ++r) scales.push_back(r % 2 == 0 ? 1.0F : 0.5F);
    for (std::int64_t j = 0; j < count; ++j) accumulated.push_back(double{draw()});
    positions.resize(static_cast<std::size_t>(count));
    std::iota(positions.begin(), positions.end(), 0);
    std::ranges::shuffle(positions, generator);
  }

  LeastScore add_scores(Isa isa, std::int64_t before) {
    return cpu_kernels(isa).add_scores({.rows = rows.data(),
                                        .row_stride = stride,
                                        .num_rows = static_cast<std::int64_t>(scales.size()),
                                        .scales = scales.data(),
                                        .positions = positions.data(),
                                        .count = static_cast<std::int64_t>(positions.size()),
                                        .before = before,
                                        .accumulated = accumulated.data()});
  }

  std::int64_t least(std::int64_t before) const {
    std::int64_t best = -1;
    for (std::size_t j = 0; j < positions.size(); ++j) {
      if (positions[j] >= before) continue;
      const auto b = static_cast<std::size_t>(best);
      if (best < 0 || accumulated[j] < accumulated[b] ||
          (accumulated[j] == accumulated[b] && positions[j] > positions[b])) {
        best = static_cast<std::int64_t>(j);
      }
    }
    return best;
  }
};

TEST(AddScores, AddsTheStepAndFindsTheLeastOfThoseThatMayGo) {
  for (const Isa isa : supported_isas()) {
    for (const std::int64_t count : {0, 1, 2, 7, 8, 9, 16, 31, 100, 1639}) {
      for (const std::int64_t before : {std::int64_t{0}, std::int64_t{1}, count / 2, count}) {
        const std::int64_t num_rows = 1 + count % 3;
        Tokens tokens(count, num_rows, static_cast<std::uint32_t>(count + before));
        std::vector<double> expected = tokens.accumulated;
        for (std::int64_t r = 0; r < num_rows; ++r) {
          for (std::int64_t j = 0; j < count; ++j) {
            expected[static_cast<std::size_t>(j)] +=
                double{tokens.rows[static_cast<std::size_t>(r * tokens.stride + j)]} *
                tokens.scales[static_cast<std::size_t>(r)];
          }
        }
        const LeastScore result = tokens.add_scores(isa, before);
        EXPECT_FALSE(result.has_nan);
        EXPECT_EQ(tokens.accumulated, expected) << name_of(isa) << ", " << count << " tokens";
        EXPECT_EQ(result.slot, tokens.least(before))
            << name_of(isa) << ", " << count << " tokens, before " << before;
      }
    }
  }
}

TEST(AddScores, LooksAtNothingBetweenTheRows) {
  for (const Isa isa : supported_isas()) {
    Tokens tokens(101, 2, 3);
    for (const std::size_t gap : {101U, 102U, 103U, 205U}) {
      tokens.rows[gap] = std::numeric_limits<float>::quiet_NaN();
    }
    EXPECT_FALSE(tokens.add_scores(isa, 50).has_nan) << name_of(isa);
  }
}

TEST(AddScores, ChangesNothingIfARowHoldsNaN) {
  for (const Isa isa : supported_isas()) {
    for (const std::size_t at : {0U, 5U, 99U, 100U, 104U, 203U, 204U}) {  // 104 begins row 1
      Tokens tokens(101, 2, 3);
      tokens.rows[at] = std::numeric_limits<float>::quiet_NaN();
      const std::vector<double> before = tokens.accumulated;
      EXPECT_TRUE(tokens.add_scores(isa, 50).has_nan) << name_of(isa) << ", token " << at;
      EXPECT_EQ(tokens.accumulated, before) << name_of(isa) << ", token " << at;
    }
  }
}

}  // namespace
}  // namespace hybridgen::kernels
