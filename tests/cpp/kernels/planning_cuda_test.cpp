// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda_planning.h"

#include <algorithm>

#include "hybridgen/core/error.h"
#include "kernel_test_support.h"
#include "kernels/cuda_kernels.h"
#include "support/in_every_order.h"

#if HYBRIDGEN_HAS_CUDA
#include "guessed_requests.h"
#include "guessing.h"
#endif

namespace hybridgen::kernels::test {
namespace {

TEST(PlanningCuda, WithoutCudaIsRefused) {
  if (has_cuda_kernels()) GTEST_SKIP() << "a build without nvcc (HYBRIDGEN_CUDA=OFF) would run it";
  EXPECT_THROW(guess_logits_cuda({}, nullptr), DeviceError);
  EXPECT_THROW(count_near_cuda({}, nullptr), DeviceError);
}

#if HYBRIDGEN_HAS_CUDA

using hybridgen::test::in_every_order;

class PlanningOnDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  }
};

// ---- How many are near the best ----

std::vector<std::int64_t> counts_near(const std::vector<GuessedRequest>& requests) {
  const GuessedRequests guessed(requests);
  count_near_cuda(guessed.args(), nullptr);
  std::vector<std::int64_t> counts;
  for (std::size_t i = 0; i < requests.size(); ++i) counts.push_back(guessed.count(i));
  return counts;
}

std::int64_t count_near(const Rows& rows, float alpha, std::int64_t most) {
  return counts_near({{.guesses = rows, .most = most, .count = -7, .alpha = alpha}}).front();
}

/// The number that PlanItem::alpha asks for, in plain loops.
std::int64_t twin_count_near(const Rows& rows, float alpha, std::int64_t most) {
  double sum = 0.0;
  for (std::int64_t g = 0; g < rows.groups; ++g) {
    const float* row = rows.scores.data() + g * rows.tokens();
    float largest = row[0];
    for (std::int64_t t = 0; t < rows.tokens(); ++t) {
      if (row[t] > largest || std::isnan(row[t])) largest = row[t];
    }
    for (std::int64_t t = 0; t < rows.tokens(); ++t) sum += row[t] > largest - alpha ? 1.0 : 0.0;
  }
  const double mean = sum / static_cast<double>(rows.groups);
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(mean), 1, most);
}

TEST_F(PlanningOnDevice, CountsWhatIsWithinAlphaOfARowsLargest) {
  const Rows rows{2, {1.0F, 4.0F, 3.0F, 2.0F, -9.0F, -9.0F, -9.0F, -9.0F}};
  EXPECT_EQ(count_near(rows, 1.0F, 4), 2);  // (1 + 4) / 2: 3 is not above 4 - 1
  EXPECT_EQ(count_near(rows, 1.5F, 4), 3);
  EXPECT_EQ(count_near(rows, 100.0F, 4), 4);
  EXPECT_EQ(count_near(rows, 100.0F, 3), 3);  // not more than `most`
  EXPECT_EQ(count_near(rows, 0.0F, 4), 1);    // not less than one
}

TEST_F(PlanningOnDevice, ARowWithANanCountsAsNone) {
  Rows rows{2, std::vector<float>(2 * 5000, 1.0F)};
  EXPECT_EQ(count_near(rows, 1.0F, 5000), 5000);
  rows.scores[2500] = kNaN;
  EXPECT_EQ(count_near(rows, 1.0F, 5000), 2500);
  rows.scores[9999] = kNaN;
  EXPECT_EQ(count_near(rows, 1.0F, 5000), 1);
}

TEST_F(PlanningOnDevice, CountsAgreeWithThePlainLoopInAnyOrder) {
  for (const std::int64_t tokens : {1, 257, 4100}) {
    for (const Rows& rows : hard_rows(3, tokens)) {
      for (const float alpha : {0.0F, 0.75F, 4.0F}) {
        const std::int64_t expected = twin_count_near(rows, alpha, tokens);
        in_every_order([&] { EXPECT_EQ(count_near(rows, alpha, tokens), expected); });
      }
    }
  }
}

// Of other lengths than their neighbours', one without tokens, one that wants no count.
TEST_F(PlanningOnDevice, RequestsOfABatchAreCountedApart) {
  std::vector<GuessedRequest> requests;
  std::vector<std::int64_t> expected;
  for (const std::int64_t tokens : {300, 70000, 1, 4100}) {
    const Rows rows{2, random_floats(2 * tokens, static_cast<std::uint32_t>(tokens))};
    const float alpha = 0.25F * static_cast<float>(requests.size() + 1);
    requests.push_back({.guesses = rows, .most = tokens, .count = -7, .alpha = alpha});
    expected.push_back(twin_count_near(rows, alpha, tokens));
  }
  requests.push_back({.guesses = {.groups = 2, .scores = {}}, .count = -7});
  requests.push_back({.guesses = requests.front().guesses, .most = 300, .alpha = 1.0F});
  expected.insert(expected.end(), {-7, -7});
  in_every_order([&] { EXPECT_EQ(counts_near(requests), expected); });
}

// ---- Guessed logits ----

class GuessOnDevice : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  }
};

// Of one dimension, and queries 1 and -1: the keys' magnitudes, exactly.
TEST_P(GuessOnDevice, OfOneDimensionAreMagnitudes) {
  const GuessShape shape{.groups = 2, .num_queries = 2, .width = 1, .tokens = {70}};
  Guessing guessing(GetParam(), shape);
  for (std::int64_t g = 0; g < 2; ++g) {
    guessing.set_query(0, g, 0, 0, 1.0F);
    guessing.set_query(0, g, 1, 0, -1.0F);
  }
  const std::vector<float> guesses = guessing.on_device().front();
  for (std::size_t i = 0; i < guesses.size(); ++i) {
    const auto at = static_cast<std::int64_t>(i);
    ASSERT_EQ(guesses[i], std::abs(guessing.key(0, at / 70, at % 70, 0)));
  }
}

// Rows of queries around how many share a reading of the keys, columns around how many lie in
// shared memory, tokens around a block of keys and a block of threads.
TEST_P(GuessOnDevice, AgreeWithTheCpuTwin) {
  for (const std::int64_t num_queries : {1, 3, 4, 5, 9}) {
    for (const std::int64_t width : {1, 38, 127, 129, 300}) {
      const std::int64_t tokens = width < 100 ? 289 : 33;
      Guessing(GetParam(), {2, num_queries, width, {tokens}}).expect_agreement();
    }
  }
  for (const std::int64_t tokens : {1, 31, 32, 255, 256, 257, 513}) {
    Guessing(GetParam(), {3, 2, 5, {tokens}}).expect_agreement();
  }
}

TEST_P(GuessOnDevice, RequestsOfABatchAgreeInAnyOrder) {
  const Guessing guessing(GetParam(), {2, 6, 140, {300, 1, 33}});
  in_every_order([&] { guessing.expect_agreement(); });
}

TEST_P(GuessOnDevice, ARequestWithoutTokensIsLeftOut) {
  const Guessing guessing(GetParam(), {2, 3, 5, {40, 0, 70}});
  guessing.expect_agreement();
}

// Keys that pick a column each show the turned query: scaled, summed over all of its dimensions and
// rounded to what keys are.
TEST_P(GuessOnDevice, QueriesAreScaledTurnedAndRounded) {
  constexpr std::int64_t kWidth = 5;
  Guessing guessing(GetParam(), {.groups = 2, .width = kWidth, .tokens = {kWidth, kWidth}});
  const std::vector<float> columns = random_floats(2 * guessing.head_dim() * kWidth, 12);
  std::size_t next = 0;
  for (std::int64_t g = 0; g < 2; ++g) {
    for (std::int64_t w = 0; w < kWidth; ++w) {
      for (std::int64_t d = 0; d < guessing.head_dim(); ++d) {
        guessing.set_column(g, d, w, columns[next++]);
      }
      for (std::int64_t b = 0; b < 2; ++b) {
        for (std::int64_t t = 0; t < kWidth; ++t) {
          guessing.set_key(b, g, t, w, t == w ? 1.0F : 0.0F);
        }
      }
    }
  }
  const std::vector<std::vector<float>> guesses = guessing.on_device();
  const double scale = 1.0 / std::sqrt(static_cast<double>(guessing.head_dim()));
  const double rounding = GetParam() == DType::kFloat32   ? 0.0
                          : GetParam() == DType::kFloat16 ? 0x1p-11
                                                          : 0x1p-8;
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t g = 0; g < 2; ++g) {
      for (std::int64_t w = 0; w < kWidth; ++w) {
        double sum = 0.0;
        double size = 0.0;
        for (std::int64_t d = 0; d < guessing.head_dim(); ++d) {
          const double term = guessing.query(b, g, 0, d) * guessing.column(g, d, w) * scale;
          sum += term;
          size += std::abs(term);
        }
        const float guess =
            guesses[static_cast<std::size_t>(b)][static_cast<std::size_t>(g * kWidth + w)];
        ASSERT_NEAR(guess, sum, rounding * std::abs(sum) + 2.0 * sum_error(20) * size);
        Array rounded(GetParam(), 1);
        rounded.set(0, guess);
        ASSERT_EQ(rounded.at(0), guess) << "is no number of that type";
      }
    }
  }
}

TEST_P(GuessOnDevice, NanOfOneQueryIsTheGuess) {
  const GuessShape shape{.groups = 2, .num_queries = 6, .width = 5, .tokens = {40}};
  for (const std::int64_t row : {0, 3, 5}) {
    Guessing guessing(GetParam(), shape);
    guessing.set_query(0, 1, row, 4, 0.0F);
    guessing.set_key(0, 1, 35, 4, kInfinity);
    const std::vector<float> guesses = guessing.on_device().front();
    for (std::size_t i = 0; i < guesses.size(); ++i) {
      ASSERT_EQ(std::isnan(guesses[i]), i == 40 + 35) << "query " << row << ", guess " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes,
                         GuessOnDevice,
                         testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16),
                         [](const auto& param) { return std::string(name_of(param.param)); });

#endif  // HYBRIDGEN_HAS_CUDA

}  // namespace
}  // namespace hybridgen::kernels::test
