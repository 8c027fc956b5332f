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
  std::vector<double> step;
  std::vector<double> accumulated;
  std::vector<std::int32_t> positions;

  /// Few different scores, so that there are ties.
  explicit Tokens(std::int64_t count, std::uint32_t seed) {
    std::mt19937 generator(seed);
    const auto draw = [&] { return static_cast<double>(generator() % 7) / 8.0; };
    for (std::int64_t j = 0; j < count; ++j) {
      step.push_back(draw());
      accumulated.push_back(draw());
    }
    positions.resize(static_cast<std::size_t>(count));
    std::iota(positions.begin(), positions.end(), 0);
    std::ranges::shuffle(positions, generator);
  }

  RetentionResult retain(Isa isa, std::int64_t before) {
    return cpu_kernels(isa).retain({.step = step.data(),
                                    .positions = positions.data(),
                                    .count = static_cast<std::int64_t>(step.size()),
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

TEST(Retain, AddsTheStepAndFindsTheLeastOfThoseThatMayGo) {
  for (const Isa isa : supported_isas()) {
    for (const std::int64_t count : {0, 1, 2, 7, 8, 9, 16, 31, 100, 1639}) {
      for (const std::int64_t before : {std::int64_t{0}, std::int64_t{1}, count / 2, count}) {
        Tokens tokens(count, static_cast<std::uint32_t>(count + before));
        std::vector<double> expected = tokens.accumulated;
        for (std::size_t j = 0; j < expected.size(); ++j) expected[j] += tokens.step[j];
        const RetentionResult result = tokens.retain(isa, before);
        EXPECT_FALSE(result.has_nan);
        EXPECT_EQ(tokens.accumulated, expected) << name_of(isa) << ", " << count << " tokens";
        EXPECT_EQ(result.slot, tokens.least(before))
            << name_of(isa) << ", " << count << " tokens, before " << before;
      }
    }
  }
}

TEST(Accumulate, AddsExactlyWhatAFloatIs) {
  for (const Isa isa : supported_isas()) {
    for (const std::int64_t count : {0, 1, 7, 8, 33, 100}) {
      std::vector<float> x(static_cast<std::size_t>(count));
      std::vector<double> y(x.size());
      std::vector<double> expected(x.size());
      for (std::size_t j = 0; j < x.size(); ++j) {
        x[j] = 1.0F / static_cast<float>(j + 3);
        y[j] = 1.0 / static_cast<double>(j + 7);
        expected[j] = y[j] + static_cast<double>(x[j]);
      }
      cpu_kernels(isa).accumulate(x.data(), count, y.data());
      EXPECT_EQ(y, expected) << name_of(isa) << ", " << count;
    }
  }
}

TEST(Retain, ChangesNothingIfAStepIsNaN) {
  for (const Isa isa : supported_isas()) {
    for (const std::size_t at : {0U, 5U, 99U, 100U}) {
      Tokens tokens(101, 3);
      tokens.step[at] = std::numeric_limits<double>::quiet_NaN();
      const std::vector<double> before = tokens.accumulated;
      EXPECT_TRUE(tokens.retain(isa, 50).has_nan) << name_of(isa) << ", token " << at;
      EXPECT_EQ(tokens.accumulated, before) << name_of(isa) << ", token " << at;
    }
  }
}

}  // namespace
}  // namespace hybridgen::kernels
