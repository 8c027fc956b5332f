// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <numeric>
#include <thread>

#include "kernel_test_support.h"
#include "kernels/top_k_passes.h"
#include "runtime/cpus.h"
#include "runtime/worker_pool.h"

namespace hybridgen::kernels::test {
namespace {

/// Positions by descending score, equal ones by position; the first k, ascending.
std::vector<std::int32_t> stable_top(const std::vector<float>& scores, std::int64_t k) {
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(k));
  std::sort(order.begin(), order.end());
  return order;
}

void expect_stable_top(const std::vector<float>& scores, const char* what) {
  const auto n = static_cast<std::int64_t>(scores.size());
  std::vector<float> scratch;
  for (const std::int64_t k : {std::int64_t{0}, std::int64_t{1}, n / 50, n / 5, n - 1, n}) {
    if (k < 0 || k > n) continue;
    std::vector<std::int32_t> positions(static_cast<std::size_t>(k));
    std::vector<float> values(static_cast<std::size_t>(k));
    const std::vector<std::int32_t> expected = stable_top(scores, k);
    for (const TopKPasses& passes : supported_top_k_passes()) {
      ASSERT_TRUE(top_k_by(passes, scores.data(), n, k, positions.data(), values.data(), scratch));
      ASSERT_EQ(positions, expected) << what << ", n " << n << ", k " << k;
      for (std::size_t j = 0; j < positions.size(); ++j) {
        ASSERT_EQ(values[j], scores[static_cast<std::size_t>(positions[j])]);
      }
    }
  }
}

constexpr std::int64_t kSizes[] = {1, 2, 100, 4097, 20000};

TEST(TopK, EqualsAStableSortOfRandomScores) {
  for (const std::int64_t n : kSizes) expect_stable_top(random_floats(n, 30), "random");
}

TEST(TopK, BreaksTiesByPosition) {
  for (const std::int64_t n : kSizes) {
    std::vector<float> scores = random_floats(n, 31);
    for (float& score : scores) score = std::round(score);
    expect_stable_top(scores, "tied");
    expect_stable_top(std::vector<float>(static_cast<std::size_t>(n), 0.5F), "all equal");
  }
}

TEST(TopK, TakesZerosOfEitherSignAsEqual) {
  std::vector<float> scores(5000, -0.0F);
  for (std::size_t i = 1; i < scores.size(); i += 2) scores[i] = 0.0F;
  expect_stable_top(scores, "signed zeros");
}

TEST(TopK, TakesMinusInfinityLast) {
  for (const std::int64_t n : kSizes) {
    std::vector<float> scores = random_floats(n, 32);
    for (std::size_t i = 0; i < scores.size(); ++i) {
      if (i % 10 != 3) scores[i] = -kInfinity;
    }
    expect_stable_top(scores, "mostly -inf");
    for (float& score : scores) score = -score;
    expect_stable_top(scores, "mostly +inf");
    expect_stable_top(std::vector<float>(static_cast<std::size_t>(n), -kInfinity), "all -inf");
  }
}

TEST(TopK, IsExactWhenTheLargeScoresLieTogether) {
  std::vector<float> ascending(20000);
  std::iota(ascending.begin(), ascending.end(), 0.0F);
  expect_stable_top(ascending, "ascending");
  std::reverse(ascending.begin(), ascending.end());
  expect_stable_top(ascending, "descending");
}

TEST(TopK, IsExactWhenEveryOtherScoreInAPeriodIsLarge) {
  // A sample taken at a fixed distance would see one phase of this only.
  std::vector<float> scores = random_floats(20480, 33);
  for (std::size_t i = 0; i < scores.size(); i += 20) scores[i] += 100.0F;
  expect_stable_top(scores, "periodic");
}

TEST(TopK, ReportsANaNAnywhere) {
  for (const std::int64_t n : kSizes) {
    for (const std::int64_t at : {std::int64_t{0}, n / 2, n - 1}) {
      std::vector<float> scores = random_floats(n, 34);
      scores[static_cast<std::size_t>(at)] = std::numeric_limits<float>::quiet_NaN();
      std::vector<std::int32_t> positions(static_cast<std::size_t>(n));
      std::vector<float> values(static_cast<std::size_t>(n));
      std::vector<float> scratch;
      for (const std::int64_t k : {std::int64_t{1}, n}) {
        for (const TopKPasses& passes : supported_top_k_passes()) {
          EXPECT_FALSE(
              top_k_by(passes, scores.data(), n, k, positions.data(), values.data(), scratch))
              << "n " << n << " at " << at;
          // Also among scores that are passed over, as all are below the threshold.
          const Candidates room = {scratch.data(), scratch.data() + top_k_scratch(n) / 2};
          EXPECT_TRUE(passes.keep(scores.data(), n, 1000.0F, room).has_nan)
              << "n " << n << " at " << at;
        }
      }
    }
  }
}

TEST(TopK, IsTheSameWhateverTheThresholdItIsGiven) {
  std::vector<float> scores = random_floats(20000, 36);
  scores[77] = scores[19000] = scores[123];  // a tie or two
  std::vector<float> scratch;
  for (const std::int64_t k : {1, 200, 600, 5000, 20000}) {
    std::vector<std::int32_t> positions(static_cast<std::size_t>(k));
    std::vector<float> values(static_cast<std::size_t>(k));
    const std::vector<std::int32_t> expected = stable_top(scores, k);
    for (const float guess : {-kInfinity, -1000.0F, 0.0F, scores[123], 2.0F, 1000.0F, kInfinity}) {
      for (const TopKPasses& passes : supported_top_k_passes()) {
        float threshold = guess;
        ASSERT_TRUE(top_k_by(
            passes, scores.data(), 20000, k, positions.data(), values.data(), scratch, &threshold));
        ASSERT_EQ(positions, expected) << "k " << k << ", threshold " << guess;
      }
    }
  }
}

TEST(TopK, LeavesAThresholdThatKeepsAFewTimesTheTopOfASimilarRow) {
  constexpr std::int64_t kCount = 200;
  std::vector<std::int32_t> positions(kCount);
  std::vector<float> values(kCount);
  std::vector<float> scratch;
  float threshold = std::numeric_limits<float>::quiet_NaN();
  for (std::uint32_t seed = 50; seed < 60; ++seed) {
    const std::vector<float> scores = random_floats(20000, seed);
    ASSERT_TRUE(
        top_k(scores.data(), 20000, kCount, positions.data(), values.data(), scratch, &threshold));
    const std::int64_t kept = count_plain(scores.data(), 20000, threshold);
    EXPECT_GE(kept, kCount);
    EXPECT_LE(kept, 5 * kCount);
  }
}

TEST(TopK, LeavesNoThresholdThatANumberCouldNotPass) {
  std::vector<float> scores(5000, -kInfinity);
  std::vector<std::int32_t> positions(100);
  std::vector<float> values(100);
  std::vector<float> scratch;
  float threshold = 1.0F;
  for (int step = 0; step < 3; ++step) {
    ASSERT_TRUE(
        top_k(scores.data(), 5000, 100, positions.data(), values.data(), scratch, &threshold));
    EXPECT_EQ(positions, stable_top(scores, 100));
    EXPECT_FALSE(threshold > -kInfinity);
  }
}

TEST(TopK, TakesNumbersThatTheCpuFlushesToZeroAsZeros) {
  // As in a worker, whose CPU flushes them. A new thread, so that this one keeps its mode.
  std::vector<float> scores(6000, 0.0F);
  for (std::size_t i = 0; i < scores.size(); i += 3) scores[i] = 1e-40F;
  for (std::size_t i = 1; i < scores.size(); i += 3) scores[i] = -1e-40F;
  scores[4000] = 1.0F;
  std::vector<std::int32_t> expected = {0, 1, 2, 3, 4000};
  std::thread([&] {
    flush_denormals_in_current_thread();
    std::vector<float> scratch;
    std::vector<std::int32_t> positions(5);
    std::vector<float> values(5);
    for (const TopKPasses& passes : supported_top_k_passes()) {
      ASSERT_TRUE(
          top_k_by(passes, scores.data(), 6000, 5, positions.data(), values.data(), scratch));
      EXPECT_EQ(positions, expected);
    }
  }).join();
}

TEST(TopK, DoesNotGrowItsScratchAgainForTheSameSize) {
  const std::vector<float> scores = random_floats(9000, 35);
  std::vector<std::int32_t> positions(90);
  std::vector<float> values(90);
  std::vector<float> scratch;
  ASSERT_TRUE(top_k(scores.data(), 9000, 90, positions.data(), values.data(), scratch));
  const float* const data = scratch.data();
  ASSERT_TRUE(top_k(scores.data(), 8999, 90, positions.data(), values.data(), scratch));
  EXPECT_EQ(scratch.data(), data);
}

}  // namespace
}  // namespace hybridgen::kernels::test
