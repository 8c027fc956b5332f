// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "logits_test_support.h"

namespace hybridgen::kernels::test {
namespace {

constexpr std::int64_t kTokens = 160;  // five blocks
constexpr std::int64_t kQueries = 11;  // more than any kernel takes in one pass

std::vector<float> row_logits(const CpuKernels& kernels,
                              const Keys& keys,
                              const std::vector<float>& queries,
                              std::int64_t num_queries,
                              std::int64_t count) {
  std::vector<float> logits(static_cast<std::size_t>(num_queries * count));
  kernels.row_logits({.dtype = keys.rows.dtype(),
                      .keys = keys.rows.data(),
                      .key_stride = keys.head_dim,
                      .head_dim = keys.head_dim,
                      .count = count,
                      .queries = queries.data(),
                      .num_queries = num_queries,
                      .logits = logits.data(),
                      .logits_stride = count});
  return logits;
}

class RowLogits : public KernelTest {};

TEST_P(RowLogits, AreTheDotProductsForAnyCountAndHeadDim) {
  for (const std::int64_t head_dim : {1, 7, 64, 80}) {
    const Keys keys = random_keys(dtype(), 32, head_dim);
    const std::vector<float> queries = random_floats(kQueries * head_dim, 10);
    for (const std::int64_t count : {1, 2, 3, 4, 5, 32}) {
      for (const std::int64_t num_queries : {1, 2, 3, 4, 11}) {
        expect_dot_products(row_logits(kernels(), keys, queries, num_queries, count),
                            keys,
                            queries,
                            num_queries,
                            {0, count});
      }
    }
  }
}

TEST_P(RowLogits, DoNotDependOnTheCount) {
  const Keys keys = random_keys(dtype(), 32, 72);
  const std::vector<float> queries = random_floats(3 * 72, 11);
  const std::vector<float> whole = row_logits(kernels(), keys, queries, 3, 32);
  for (std::int64_t count = 0; count < 32; ++count) {
    const std::vector<float> part = row_logits(kernels(), keys, queries, 3, count);
    for (std::int64_t q = 0; q < 3; ++q) {
      EXPECT_TRUE(std::equal(
          part.begin() + q * count, part.begin() + (q + 1) * count, whole.begin() + q * 32))
          << "count " << count;
    }
  }
}

TEST_P(RowLogits, AgreeWithBlockedLogits) {
  const Keys keys = random_keys(dtype(), kTokens, 64);
  const std::vector<float> queries = random_floats(2 * 64, 12);
  const std::vector<float> rows = row_logits(kernels(), keys, queries, 2, kTokens);
  const std::vector<float> blocked = blocked_logits(kernels(), keys, queries, 2, {0, kTokens});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    // |q| |k| is about 64 here and bounds the sum of the terms' sizes by Cauchy and Schwarz.
    EXPECT_NEAR(rows[i], blocked[i], 2.0 * 128.0 * sum_error(64));
  }
}

TEST_P(RowLogits, OfChosenRowsAreTheSameBits) {
  const Keys keys = random_keys(dtype(), kTokens, 72);
  const std::vector<float> queries = random_floats(5 * 72, 13);
  const std::vector<float> whole = row_logits(kernels(), keys, queries, 5, kTokens);
  // In runs, apart, backwards and twice.
  const std::vector<std::int32_t> positions{0, 1, 2, 3, 4, 40, 77, 78, 159, 12, 12, 31, 32};
  for (std::size_t count = 0; count <= positions.size(); ++count) {
    std::vector<float> chosen(5 * count);
    chosen_row_logits(kernels(),
                      {.dtype = keys.rows.dtype(),
                       .keys = keys.rows.data(),
                       .key_stride = keys.head_dim,
                       .head_dim = keys.head_dim,
                       .queries = queries.data(),
                       .num_queries = 5,
                       .logits = chosen.data(),
                       .logits_stride = static_cast<std::int64_t>(count)},
                      positions.data(),
                      static_cast<std::int64_t>(count));
    for (std::size_t q = 0; q < 5; ++q) {
      for (std::size_t j = 0; j < count; ++j) {
        EXPECT_EQ(chosen[q * count + j],
                  whole[q * kTokens + static_cast<std::size_t>(positions[j])])
            << "query " << q << " position " << positions[j];
      }
    }
  }
}

HYBRIDGEN_FOR_EVERY_ISA_AND_DTYPE(RowLogits);

class SoftmaxValues : public KernelTest {
 protected:
  /// Splits `tokens` values into a host part, read through an index, and a resident part.
  struct Result {
    std::vector<float> weights;
    Array out;
  };
  Result run(const std::vector<float>& logits,
             const Array& values,
             std::int64_t num_queries,
             std::int64_t head_dim,
             std::int64_t host_count) const {
    const auto total = static_cast<std::int64_t>(logits.size()) / num_queries;
    std::vector<std::int32_t> index(static_cast<std::size_t>(num_queries * host_count));
    for (std::size_t i = 0; i < index.size(); ++i) {
      index[i] = static_cast<std::int32_t>(i % static_cast<std::size_t>(host_count));
    }
    Result result{.weights = logits, .out = Array(dtype(), num_queries * head_dim)};
    kernels().softmax_values(
        {.dtype = dtype(),
         .logits = result.weights.data(),
         .logits_stride = total,
         .num_queries = num_queries,
         .head_dim = head_dim,
         .host_count = host_count,
         .host_index = index.data(),
         .host_values = values.data(),
         .resident_count = total - host_count,
         .resident_values = static_cast<const std::byte*>(values.data()) +
                            static_cast<std::size_t>(host_count * head_dim) * size_of(dtype()),
         .resident_stride = head_dim,
         .out = result.out.data(),
         .out_stride = head_dim});
    return result;
  }
};

TEST_P(SoftmaxValues, MatchMonolithicAttentionWhereverTheSplitLies) {
  constexpr std::int64_t kCount = 75;
  for (const std::int64_t head_dim : {1, 5, 64, 80, 128}) {
    const Array values = random_array(dtype(), kCount * head_dim, 13);
    for (const std::int64_t num_queries : {1, 2, 3, 4, 5, 8, 9}) {
      std::vector<float> logits = random_floats(num_queries * kCount, 14);
      for (float& logit : logits) logit *= 5.0F;
      for (const std::int64_t host_count : {std::int64_t{0}, std::int64_t{20}, kCount}) {
        const Result result = run(logits, values, num_queries, head_dim, host_count);
        for (std::int64_t q = 0; q < num_queries; ++q) {
          const float* row = logits.data() + q * kCount;
          const double peak = *std::max_element(row, row + kCount);
          double sum = 0.0;
          for (std::int64_t j = 0; j < kCount; ++j)
            sum += std::exp(static_cast<double>(row[j]) - peak);
          for (std::int64_t d = 0; d < head_dim; ++d) {
            double expected = 0.0;
            double size = 0.0;
            for (std::int64_t j = 0; j < kCount; ++j) {
              const double term = std::exp(static_cast<double>(row[j]) - peak) / sum *
                                  static_cast<double>(values.at(j * head_dim + d));
              expected += term;
              size += std::abs(term);
            }
            // A logit is off by up to |difference| 2^-24, hence its weight relatively by as much:
            // differences stay below 60. The exponential itself adds a few units.
            const double weight_error = 80.0 * unit_roundoff(DType::kFloat32);
            const double tolerance = size * (2.0 * weight_error + 2.0 * sum_error(kCount)) +
                                     1.01 * std::abs(expected) * unit_roundoff(dtype()) +
                                     absolute_floor(dtype());
            ASSERT_NEAR(result.out.at(q * head_dim + d), expected, tolerance)
                << "head_dim " << head_dim << " queries " << num_queries << " host " << host_count;
          }
        }
      }
    }
  }
}

TEST_P(SoftmaxValues, TakeHostRowsInOrderWithoutAnIndex) {
  constexpr std::int64_t kCount = 60;
  constexpr std::int64_t kHost = 35;
  for (const std::int64_t head_dim : {5, 80}) {
    const Array values = random_array(dtype(), kCount * head_dim, 33);
    const std::vector<float> logits = random_floats(3 * kCount, 34);
    const Result indexed = run(logits, values, 3, head_dim, kHost);
    std::vector<float> weights = logits;
    Array out(dtype(), 3 * head_dim);
    kernels().softmax_values(
        {.dtype = dtype(),
         .logits = weights.data(),
         .logits_stride = kCount,
         .num_queries = 3,
         .head_dim = head_dim,
         .host_count = kHost,
         .host_values = values.data(),
         .resident_count = kCount - kHost,
         .resident_values = static_cast<const std::byte*>(values.data()) +
                            static_cast<std::size_t>(kHost * head_dim) * size_of(dtype()),
         .resident_stride = head_dim,
         .out = out.data(),
         .out_stride = head_dim});
    for (std::int64_t i = 0; i < 3 * head_dim; ++i) EXPECT_EQ(out.at(i), indexed.out.at(i)) << i;
  }
}

TEST_P(SoftmaxValues, LeaveWeightsThatSumToOne) {
  const std::vector<float> logits = random_floats(3 * 501, 15);
  const Array values = random_array(dtype(), 501 * 16, 16);
  const Result result = run(logits, values, 3, 16, 200);
  for (std::int64_t q = 0; q < 3; ++q) {
    const auto row = result.weights.begin() + q * 501;
    EXPECT_NEAR(std::accumulate(row, row + 501, 0.0), 1.0, sum_error(501));
  }
}

TEST_P(SoftmaxValues, SolveTheWorkedExample) {
  // q = 1, k = (0, ln 2, 2 ln 2, 0), v = (8, 0, 2, 16), scale 1: weights (1, 2, 4, 1) / 8.
  const float ln2 = std::log(2.0F);
  Array values(dtype(), 4);
  for (const auto& [j, v] : {std::pair{0, 8.0F}, {1, 0.0F}, {2, 2.0F}, {3, 16.0F}})
    values.set(j, v);
  const double tolerance = 4.0 * (unit_roundoff(dtype()) + sum_error(8));
  for (std::int64_t host_count = 0; host_count <= 4; ++host_count) {
    const Result result = run({0.0F, ln2, 2.0F * ln2, 0.0F}, values, 1, 1, host_count);
    EXPECT_NEAR(result.out.at(0), 4.0, tolerance) << "host " << host_count;
  }
  // Host {0, 1}, resident {2, 3}, and of the host's only token 1 chosen: (2 * 0 + 4 * 2 + 16) / 7.
  Array chosen(dtype(), 3);
  for (const auto& [j, v] : {std::pair{0, 0.0F}, {1, 2.0F}, {2, 16.0F}}) chosen.set(j, v);
  const Result result = run({ln2, 2.0F * ln2, 0.0F}, chosen, 1, 1, 1);
  EXPECT_NEAR(result.out.at(0), 24.0 / 7.0, tolerance);
}

TEST_P(SoftmaxValues, ReadHostRowsThroughEachQuerysOwnIndex) {
  // Two queries whose only host token is row 2 and row 0 of the union.
  Array values(dtype(), 3);
  for (std::int64_t i = 0; i < 3; ++i) values.set(i, static_cast<float>(i + 1));
  const std::vector<std::int32_t> index = {2, 0};
  std::vector<float> logits = {0.0F, 0.0F};
  Array out(dtype(), 2);
  kernels().softmax_values({.dtype = dtype(),
                            .logits = logits.data(),
                            .logits_stride = 1,
                            .num_queries = 2,
                            .head_dim = 1,
                            .host_count = 1,
                            .host_index = index.data(),
                            .host_values = values.data(),
                            .out = out.data(),
                            .out_stride = 1});
  EXPECT_EQ(out.at(0), 3.0F);
  EXPECT_EQ(out.at(1), 1.0F);
}

TEST_P(SoftmaxValues, GiveMaskedTokensNoWeight) {
  const Array values = random_array(dtype(), 40 * 8, 17);
  std::vector<float> logits = random_floats(40, 18);
  for (std::size_t j = 0; j < 40; j += 3) logits[j] = -kInfinity;
  const Result result = run(logits, values, 1, 8, 10);
  for (std::size_t j = 0; j < 40; ++j) EXPECT_EQ(result.weights[j] == 0.0F, j % 3 == 0) << j;
}

TEST_P(SoftmaxValues, OfAFullyMaskedOrEmptyRowAreZero) {
  const Array values = random_array(dtype(), 21 * 8, 19);
  Result result = run(std::vector<float>(21, -kInfinity), values, 1, 8, 5);
  EXPECT_EQ(result.out, Array(dtype(), 8));
  EXPECT_EQ(result.weights, std::vector<float>(21, 0.0F));
  EXPECT_EQ(run({}, values, 1, 8, 0).out, Array(dtype(), 8));
}

TEST_P(SoftmaxValues, SurviveLogitsFarBeyondTheRangeOfTheExponential) {
  const Array values = random_array(dtype(), 3, 20);
  const Result result = run({3e38F, -3e38F, 2e38F}, values, 1, 1, 1);
  EXPECT_EQ(result.weights, (std::vector<float>{1.0F, 0.0F, 0.0F}));
  EXPECT_EQ(result.out.at(0), values.at(0));
}

TEST_P(SoftmaxValues, DoNotHideANaN) {
  std::vector<float> logits = random_floats(20, 21);
  logits[13] = std::numeric_limits<float>::quiet_NaN();
  const Result result = run(logits, random_array(dtype(), 20, 22), 1, 1, 4);
  EXPECT_TRUE(std::isnan(result.out.at(0)));
}

HYBRIDGEN_FOR_EVERY_ISA_AND_DTYPE(SoftmaxValues);

}  // namespace
}  // namespace hybridgen::kernels::test
