// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernel_test_support.h"

namespace hybridgen::kernels::test {
namespace {

class PrefillAttention : public KernelTest {};
class ColumnSums : public KernelTest {};

/// Whether weights are rounded to bfloat16 before they meet the values.
bool rounds_weights(const CpuKernels& kernels, DType dtype) {
  return dtype == DType::kBFloat16 && kernels.isa >= Isa::kAvx512Bf16;
}

/// Of the exponential alone, relative.
double exponential_error(const CpuKernels& kernels, DType dtype) {
  return rounds_weights(kernels, dtype) ? 4e-6 : 1e-6;
}

/// Each weight is rounded, and so is their sum, that outputs are divided by.
double rounding_error(const CpuKernels& kernels, DType dtype) {
  return rounds_weights(kernels, dtype) ? 2.02 * unit_roundoff(DType::kBFloat16) : 0.0;
}

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

struct Problem {
  std::int64_t heads = 1;
  std::int64_t rows = 1;
  std::int64_t dim = 64;
  std::int64_t count = 1;
  bool is_causal = false;
  std::int64_t first_row = 0;
};

struct Output {
  std::vector<float> out;  ///< [heads, rows, D]
  std::vector<float> lse;  ///< [heads, rows]
};

/// Rows of q, k and v lie `gap` elements apart, which hold numbers that must not be read.
struct Inputs {
  Inputs(DType dtype, const Problem& problem, std::int64_t gap)
      : q_stride(problem.heads * problem.dim + gap),
        kv_stride(problem.dim + gap),
        q(random_array(dtype, problem.rows * q_stride, 1)),
        k(random_array(dtype, problem.count * kv_stride, 2)),
        v(random_array(dtype, problem.count * kv_stride, 3)) {}

  std::int64_t q_stride;
  std::int64_t kv_stride;
  Array q;
  Array k;
  Array v;
};

/// Without results and scratch.
PrefillAttentionArgs args_of(const Problem& problem, const Inputs& inputs) {
  return {.dtype = inputs.q.dtype(),
          .queries = inputs.q.data(),
          .query_row_stride = inputs.q_stride,
          .num_queries = problem.heads,
          .rows = problem.rows,
          .head_dim = problem.dim,
          .scale = 1.0F / std::sqrt(static_cast<float>(problem.dim)),
          .keys = inputs.k.data(),
          .key_stride = inputs.kv_stride,
          .values = inputs.v.data(),
          .value_stride = inputs.kv_stride,
          .count = problem.count,
          .is_causal = problem.is_causal,
          .first_row = problem.first_row};
}

Output attend(const CpuKernels& kernels, const Problem& problem, const Inputs& inputs) {
  Output output{std::vector<float>(
                    static_cast<std::size_t>(problem.heads * problem.rows * problem.dim), 77.0F),
                std::vector<float>(static_cast<std::size_t>(problem.heads * problem.rows), 77.0F)};
  PrefillAttentionArgs args = args_of(problem, inputs);
  args.out = output.out.data();
  args.out_head_stride = problem.rows * problem.dim;
  args.lse = output.lse.data();
  args.lse_head_stride = problem.rows;
  std::vector<float> scratch(static_cast<std::size_t>(kernels.prefill_scratch(args)));
  args.scratch = scratch.data();
  kernels.prefill_attention(args);
  return output;
}

/// What row `row` of head `head` gave.
std::vector<float> row_of(const Problem& problem,
                          const Output& output,
                          std::int64_t head,
                          std::int64_t row) {
  const std::int64_t at = head * problem.rows + row;
  const auto begin = output.out.begin() + at * problem.dim;
  std::vector<float> values(begin, begin + problem.dim);
  values.push_back(output.lse[static_cast<std::size_t>(at)]);
  return values;
}

/// Every output against float64. With logits that are off by at most e, a weight is off by a factor
/// of exp(2 e) at most; the exponential and the two sums over tokens add their own errors, and so
/// does the rounding of weights.
void expect_exact(const CpuKernels& kernels, const Problem& problem, const Inputs& inputs) {
  const Output output = attend(kernels, problem, inputs);
  const double scale = 1.0 / std::sqrt(static_cast<double>(problem.dim));
  for (std::int64_t h = 0; h < problem.heads; ++h) {
    for (std::int64_t r = 0; r < problem.rows; ++r) {
      const std::int64_t seen =
          problem.is_causal ? std::min(problem.count, problem.first_row + r + 1) : problem.count;
      std::vector<double> logits;
      double logit_error = 0.0;
      double peak = kMinusInfinity;
      for (std::int64_t t = 0; t < seen; ++t) {
        double logit = 0.0;
        double size = 0.0;
        for (std::int64_t d = 0; d < problem.dim; ++d) {
          const double term =
              scale * static_cast<double>(inputs.q.at(r * inputs.q_stride + h * problem.dim + d)) *
              static_cast<double>(inputs.k.at(t * inputs.kv_stride + d));
          logit += term;
          size += std::abs(term);
        }
        logits.push_back(logit);
        logit_error = std::max(logit_error, size * sum_error(problem.dim + 2));
        peak = std::max(peak, logit);
      }
      double total = 0.0;
      for (const double logit : logits) total += std::exp(logit - peak);
      const double error = std::expm1(2.0 * logit_error) +
                           2.0 * exponential_error(kernels, inputs.q.dtype()) +
                           2.0 * sum_error(seen + 2);
      const auto at = static_cast<std::size_t>(h * problem.rows + r);
      ASSERT_NEAR(output.lse[at], peak + std::log(total), error + 1e-6 * std::abs(peak))
          << "head " << h << " row " << r;
      for (std::int64_t d = 0; d < problem.dim; ++d) {
        double expected = 0.0;
        double size = 0.0;
        for (std::int64_t t = 0; t < seen; ++t) {
          const double term = std::exp(logits[static_cast<std::size_t>(t)] - peak) / total *
                              static_cast<double>(inputs.v.at(t * inputs.kv_stride + d));
          expected += term;
          size += std::abs(term);
        }
        ASSERT_NEAR(
            output.out[at * static_cast<std::size_t>(problem.dim) + static_cast<std::size_t>(d)],
            expected,
            size * (error + rounding_error(kernels, inputs.q.dtype())))
            << "head " << h << " row " << r << " dimension " << d;
      }
    }
  }
}

void expect_exact(const CpuKernels& kernels, DType dtype, const Problem& problem) {
  expect_exact(kernels, problem, Inputs(dtype, problem, 3));
}

TEST_P(PrefillAttention, MatchesFloat64ForAnyNumberOfRowsAndKeys) {
  for (const std::int64_t rows : {1, 5, 6, 13}) {
    for (const std::int64_t count : {1, 63, 64, 65, 200}) {
      expect_exact(kernels(), dtype(), {.heads = 2, .rows = rows, .count = count});
    }
  }
}

TEST_P(PrefillAttention, MatchesFloat64ForAnyHeadDim) {
  for (const std::int64_t dim : {1, 7, 32, 80, 96, 128}) {
    expect_exact(kernels(), dtype(), {.heads = 3, .rows = 7, .dim = dim, .count = 70});
  }
}

TEST_P(PrefillAttention, ACausalRowSeesTheKeysUpToItsOwn) {
  expect_exact(
      kernels(), dtype(), {.heads = 3, .rows = 150, .dim = 16, .count = 150, .is_causal = true});
}

TEST_P(PrefillAttention, ACausalBlockOfRowsMayStartAnywhere) {
  for (const std::int64_t first : {1, 63, 64, 100}) {
    expect_exact(
        kernels(),
        dtype(),
        {.heads = 1, .rows = 20, .dim = 16, .count = 130, .is_causal = true, .first_row = first});
  }
}

TEST_P(PrefillAttention, MatchesFloat64OverManyBlocksOfKeys) {
  for (const std::int64_t dim : {64, 144}) {
    expect_exact(kernels(), dtype(), {.heads = 2, .rows = 4, .dim = dim, .count = 777});
    expect_exact(
        kernels(),
        dtype(),
        {.heads = 3, .rows = 9, .dim = dim, .count = 530, .is_causal = true, .first_row = 507});
  }
}

TEST_P(PrefillAttention, FollowsLogitsThatRiseAndFallFromBlockToBlock) {
  const Problem problem{.heads = 2, .rows = 5, .dim = 32, .count = 1200};
  Inputs inputs(dtype(), problem, 3);
  for (std::int64_t t = 0; t < problem.count; ++t) {
    // Up to 24 times as large: peaks move far, by little and not at all.
    const auto factor = static_cast<float>(24.0 * std::abs(std::sin(static_cast<double>(t) / 190)));
    for (std::int64_t d = 0; d < problem.dim; ++d) {
      const std::int64_t at = t * inputs.kv_stride + d;
      inputs.k.set(at, inputs.k.at(at) * factor);
    }
  }
  expect_exact(kernels(), problem, inputs);
}

TEST_P(PrefillAttention, EqualLogitsGiveTheMeanOfTheValues) {
  const Problem problem{.heads = 3, .rows = 4, .dim = 48, .count = 300};
  Inputs inputs(dtype(), problem, 0);
  for (std::int64_t i = 0; i < inputs.k.count(); ++i) inputs.k.set(i, 0.0F);
  expect_exact(kernels(), problem, inputs);
  const Output output = attend(kernels(), problem, inputs);
  for (const float lse : output.lse) EXPECT_NEAR(lse, std::log(300.0), 1e-6);
}

TEST_P(PrefillAttention, OneKeyGivesItsValueHoweverLargeOrSmallItsLogit) {
  for (const float size : {1e-30F, 1e-3F, 100.0F, 1e4F}) {
    const Problem problem{.heads = 2, .rows = 3, .dim = 40, .count = 1};
    Inputs inputs(dtype(), problem, 0);
    for (std::int64_t i = 0; i < inputs.k.count(); ++i) inputs.k.set(i, size);
    for (std::int64_t i = 0; i < inputs.q.count(); ++i) inputs.q.set(i, -size);
    const Output output = attend(kernels(), problem, inputs);
    for (std::size_t i = 0; i < output.out.size(); ++i) {
      const float value = inputs.v.at(static_cast<std::int64_t>(i) % problem.dim);
      ASSERT_NEAR(output.out[i], value, std::abs(value) * 4.0 * unit_roundoff(DType::kFloat32))
          << size;
    }
  }
}

TEST_P(PrefillAttention, ANaNReachesOnlyTheRowsThatSeeIt) {
  const Problem problem{.heads = 2, .rows = 40, .dim = 16, .count = 40, .is_causal = true};
  Inputs inputs(dtype(), problem, 0);
  const Output clean = attend(kernels(), problem, inputs);
  const std::size_t key_bytes = static_cast<std::size_t>(problem.dim) * size_of(dtype());
  // All bits set are a NaN in every dtype.
  std::memset(static_cast<std::byte*>(inputs.k.data()) + 25 * key_bytes, 0xff, key_bytes);
  const Output dirty = attend(kernels(), problem, inputs);
  for (std::int64_t head = 0; head < 2; ++head) {
    for (std::int64_t row = 0; row < problem.rows; ++row) {
      const std::vector<float> values = row_of(problem, dirty, head, row);
      if (row < 25) {
        ASSERT_EQ(values, row_of(problem, clean, head, row)) << "row " << row;
      } else {
        for (const float value : values) ASSERT_TRUE(std::isnan(value)) << "row " << row;
      }
    }
  }
}

TEST_P(PrefillAttention, OverNoKeysIsZeroWithALogSumOfMinusInfinity) {
  const Problem problem{.heads = 2, .rows = 3, .count = 0};
  const Output output = attend(kernels(), problem, Inputs(dtype(), problem, 0));
  for (const float value : output.out) EXPECT_EQ(value, 0.0F);
  for (const float value : output.lse) EXPECT_EQ(value, kMinusInfinity);
}

TEST_P(PrefillAttention, ARowsResultDoesNotDependOnTheOtherRows) {
  const Problem all{.heads = 2, .rows = 9, .dim = 32, .count = 100};
  const Inputs inputs(dtype(), all, 0);
  const Output together = attend(kernels(), all, inputs);
  Problem first = all;
  for (first.rows = 1; first.rows < 9; ++first.rows) {
    const Output alone = attend(kernels(), first, inputs);
    for (std::int64_t h = 0; h < 2; ++h) {
      for (std::int64_t i = 0; i < first.rows * 32; ++i) {
        ASSERT_EQ(alone.out[static_cast<std::size_t>(h * first.rows * 32 + i)],
                  together.out[static_cast<std::size_t>(h * 9 * 32 + i)])
            << first.rows << " rows";
      }
    }
  }
}

TEST_P(PrefillAttention, ARowsResultDoesNotDependOnTheBlockOfRowsThatItIsIn) {
  const Problem all{.heads = 3, .rows = 290, .dim = 24, .count = 290, .is_causal = true};
  const Inputs inputs(dtype(), all, 0);
  const Output together = attend(kernels(), all, inputs);
  for (const std::int64_t first : {1, 64, 255, 270}) {
    Problem part = all;
    part.first_row = first;
    part.rows = std::min<std::int64_t>(17, all.rows - first);
    Inputs rows = inputs;
    rows.q = Array(dtype(), part.rows * inputs.q_stride);
    for (std::int64_t i = 0; i < rows.q.count(); ++i) {
      rows.q.set(i, inputs.q.at(first * inputs.q_stride + i));
    }
    const Output alone = attend(kernels(), part, rows);
    for (std::int64_t head = 0; head < all.heads; ++head) {
      for (std::int64_t row = 0; row < part.rows; ++row) {
        ASSERT_EQ(row_of(part, alone, head, row), row_of(all, together, head, first + row))
            << "row " << first + row;
      }
    }
  }
}

TEST_P(PrefillAttention, AHeadsResultDoesNotDependOnTheOtherHeads) {
  const Problem all{.heads = 5, .rows = 7, .dim = 64, .count = 90};
  Inputs inputs(dtype(), all, 0);
  const Output together = attend(kernels(), all, inputs);
  Problem one = all;
  one.heads = 1;
  for (std::int64_t head = 0; head < all.heads; ++head) {
    Inputs alone = inputs;
    for (std::int64_t row = 0; row < all.rows; ++row) {
      for (std::int64_t d = 0; d < all.dim; ++d) {
        alone.q.set(row * inputs.q_stride + d,
                    inputs.q.at(row * inputs.q_stride + head * all.dim + d));
      }
    }
    const Output output = attend(kernels(), one, alone);
    for (std::int64_t row = 0; row < all.rows; ++row) {
      ASSERT_EQ(row_of(one, output, 0, row), row_of(all, together, head, row)) << "head " << head;
    }
  }
}

// ---- Column sums

/// Of the softmax that `lse` [heads, rows] belongs to: [heads, count].
std::vector<float> column_sums(const CpuKernels& kernels,
                               const Problem& problem,
                               const Inputs& inputs,
                               std::vector<float> lse) {
  std::vector<float> sums(static_cast<std::size_t>(problem.heads * problem.count), 77.0F);
  PrefillAttentionArgs args = args_of(problem, inputs);
  args.values = nullptr;
  args.out = sums.data();
  args.out_head_stride = problem.count;
  args.lse = lse.data();
  args.lse_head_stride = problem.rows;
  std::vector<float> scratch(static_cast<std::size_t>(kernels.prefill_scratch(args)));
  args.scratch = scratch.data();
  kernels.column_sums(args);
  return sums;
}

TEST_P(ColumnSums, AreTheWeightsThatAttentionGivesEachKey) {
  // Each of the first keys has a value of its own, 1 in one dimension: attention's outputs are
  // weights.
  const double error = 1e-5 + rounding_error(kernels(), dtype());
  for (const bool is_causal : {false, true}) {
    const Problem problem{
        .heads = 3, .rows = 64, .dim = 64, .count = 64, .is_causal = is_causal, .first_row = 0};
    Inputs inputs(dtype(), problem, 3);
    for (std::int64_t t = 0; t < problem.count; ++t) {
      for (std::int64_t d = 0; d < problem.dim; ++d) {
        inputs.v.set(t * inputs.kv_stride + d, t == d ? 1.0F : 0.0F);
      }
    }
    const Output output = attend(kernels(), problem, inputs);
    const std::vector<float> sums = column_sums(kernels(), problem, inputs, output.lse);
    for (std::int64_t head = 0; head < problem.heads; ++head) {
      for (std::int64_t t = 0; t < problem.count; ++t) {
        double expected = 0.0;
        for (std::int64_t row = 0; row < problem.rows; ++row) {
          expected +=
              static_cast<double>(row_of(problem, output, head, row)[static_cast<std::size_t>(t)]);
        }
        const float sum = sums[static_cast<std::size_t>(head * problem.count + t)];
        ASSERT_NEAR(sum, expected, expected * error) << "head " << head << " key " << t;
      }
    }
  }
}

TEST_P(ColumnSums, AddUpToTheNumberOfRows) {
  for (const std::int64_t dim : {24, 144}) {
    const Problem problem{
        .heads = 4, .rows = 11, .dim = dim, .count = 600, .is_causal = true, .first_row = 555};
    const Inputs inputs(dtype(), problem, 3);
    const Output output = attend(kernels(), problem, inputs);
    const std::vector<float> sums = column_sums(kernels(), problem, inputs, output.lse);
    for (std::int64_t head = 0; head < problem.heads; ++head) {
      double total = 0.0;
      for (std::int64_t t = 0; t < problem.count; ++t) {
        const float sum = sums[static_cast<std::size_t>(head * problem.count + t)];
        if (t >= problem.first_row + problem.rows) {
          ASSERT_EQ(sum, 0.0F) << "unseen key " << t;
        }
        total += static_cast<double>(sum);
      }
      EXPECT_NEAR(total, 11.0, 11.0 * 2e-5);
    }
  }
}

TEST_P(ColumnSums, DoNotDependOnTheRangeOfKeysThatTheyAreTakenIn) {
  const Problem all{.heads = 2, .rows = 40, .dim = 32, .count = 530, .is_causal = true};
  Problem late = all;
  late.first_row = 490;
  const Inputs inputs(dtype(), all, 0);
  const Output output = attend(kernels(), late, inputs);
  const std::vector<float> together = column_sums(kernels(), late, inputs, output.lse);
  for (const std::int64_t first : {0, 256, 512}) {
    Problem part = late;
    part.count = std::min<std::int64_t>(256, all.count - first);
    part.first_row =
        late.first_row - first;  // below 0 for the last range: some rows see none of it
    Inputs keys = inputs;
    for (std::int64_t i = 0; i < part.count * all.dim; ++i) {
      keys.k.set(i, inputs.k.at(first * all.dim + i));
    }
    const std::vector<float> alone = column_sums(kernels(), part, keys, output.lse);
    for (std::int64_t head = 0; head < all.heads; ++head) {
      for (std::int64_t t = 0; t < part.count; ++t) {
        ASSERT_EQ(alone[static_cast<std::size_t>(head * part.count + t)],
                  together[static_cast<std::size_t>(head * all.count + first + t)])
            << "head " << head << " key " << first + t;
      }
    }
  }
}

HYBRIDGEN_FOR_EVERY_ISA_AND_DTYPE(ColumnSums);
HYBRIDGEN_FOR_EVERY_ISA_AND_DTYPE(PrefillAttention);

}  // namespace
}  // namespace hybridgen::kernels::test
