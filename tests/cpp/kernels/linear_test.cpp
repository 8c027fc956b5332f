// SPDX-License-Identifier: Apache-2.0
#include "kernel_test_support.h"

namespace hybridgen::kernels::test {
namespace {

class Linear : public KernelTest {};

struct Problem {
  Array x;
  Array weight;
  Array bias;
  std::int64_t rows = 0;
  std::int64_t in = 0;
  std::int64_t out = 0;
};

Problem random_problem(DType dtype, std::int64_t rows, std::int64_t in, std::int64_t out) {
  return {random_array(dtype, rows * in, 1),
          random_array(dtype, out * in, 2),
          random_array(dtype, out, 3),
          rows,
          in,
          out};
}

LinearArgs arguments(const Problem& problem, Array& y) {
  return {.dtype = problem.x.dtype(),
          .y_dtype = y.dtype(),
          .x = problem.x.data(),
          .weight = problem.weight.data(),
          .bias = problem.bias.data(),
          .y = y.data(),
          .rows = problem.rows,
          .in_features = problem.in,
          .x_stride = problem.in,
          .y_stride = problem.out};
}

TEST_P(Linear, MatchesFloat64ForEveryTileShapeAndTail) {
  for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 8, 16, 33}) {
    for (const std::int64_t in : {1, 7, 16, 31, 33, 63, 64, 65, 200}) {
      const Problem problem = random_problem(dtype(), rows, in, 5);
      for (const DType y_dtype : {dtype(), DType::kFloat32}) {
        Array y(y_dtype, rows * 5);
        kernels().linear(arguments(problem, y), 0, 5);
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t n = 0; n < 5; ++n) {
            double expected = problem.bias.at(n);
            double size = std::abs(expected);
            for (std::int64_t k = 0; k < in; ++k) {
              const double term = static_cast<double>(problem.x.at(r * in + k)) *
                                  static_cast<double>(problem.weight.at(n * in + k));
              expected += term;
              size += std::abs(term);
            }
            // Instructions for pairs of bfloat16 numbers round each product and each sum at most
            // once more than multiply-adds do, which sum_error allows for; what they flush to zero
            // is far below absolute_floor.
            const double tolerance = size * sum_error(in + 1) +
                                     1.01 * std::abs(expected) * unit_roundoff(y_dtype) +
                                     absolute_floor(y_dtype);
            ASSERT_NEAR(y.at(r * 5 + n), expected, tolerance)
                << "rows " << rows << " in " << in << " row " << r << " output " << n;
          }
        }
      }
    }
  }
}

TEST_P(Linear, ARowsResultDoesNotDependOnTheOtherRows) {
  constexpr std::int64_t kIn = 203;
  constexpr std::int64_t kOut = 9;
  constexpr std::int64_t kMostRows = 34;
  const Problem problem = random_problem(dtype(), kMostRows, kIn, kOut);
  Array together(DType::kFloat32, kMostRows * kOut);
  for (std::int64_t rows = 1; rows <= kMostRows; ++rows) {
    LinearArgs args = arguments(problem, together);
    args.rows = rows;
    kernels().linear(args, 0, kOut);
    for (std::int64_t r = 0; r < rows; ++r) {
      Array alone(DType::kFloat32, kOut);
      LinearArgs one = arguments(problem, alone);
      one.rows = 1;
      one.x = static_cast<const std::byte*>(problem.x.data()) +
              static_cast<std::size_t>(r * kIn) * size_of(dtype());
      kernels().linear(one, 0, kOut);
      for (std::int64_t n = 0; n < kOut; ++n) {
        ASSERT_EQ(alone.at(n), together.at(r * kOut + n)) << "row " << r << " of " << rows;
      }
    }
  }
}

TEST_P(Linear, TheSplitOfTheOutputsChangesNoBit) {
  const Problem problem = random_problem(dtype(), 5, 130, 13);
  Array whole(dtype(), 5 * 13);
  kernels().linear(arguments(problem, whole), 0, 13);
  for (std::int64_t cut = 0; cut <= 13; ++cut) {
    Array split(dtype(), 5 * 13);
    kernels().linear(arguments(problem, split), 0, cut);
    kernels().linear(arguments(problem, split), cut, 13);
    EXPECT_EQ(split, whole) << "cut at " << cut;
  }
}

TEST_P(Linear, WithoutBiasIsTheSameAsWithABiasOfZero) {
  Problem problem = random_problem(dtype(), 2, 50, 4);
  problem.bias = Array(dtype(), 4);
  Array zero_bias(dtype(), 8);
  kernels().linear(arguments(problem, zero_bias), 0, 4);
  Array no_bias(dtype(), 8);
  LinearArgs args = arguments(problem, no_bias);
  args.bias = nullptr;
  kernels().linear(args, 0, 4);
  EXPECT_EQ(no_bias, zero_bias);
}

TEST_P(Linear, ReadsAndWritesRowsByTheirStridesOnly) {
  constexpr std::int64_t kIn = 33;
  const Problem dense = random_problem(dtype(), 3, kIn, 4);
  Array expected(dtype(), 3 * 4);
  kernels().linear(arguments(dense, expected), 0, 4);

  // One element of offset makes every row unaligned; the gaps hold a value that must survive.
  Array x(dtype(), 1 + 3 * (kIn + 3));
  for (std::int64_t i = 0; i < 3 * kIn; ++i)
    x.set(1 + i / kIn * (kIn + 3) + i % kIn, dense.x.at(i));
  Array y(dtype(), 1 + 3 * 6);
  for (std::int64_t i = 0; i < y.count(); ++i) y.set(i, 77.0F);
  LinearArgs args = arguments(dense, y);
  args.x = static_cast<const std::byte*>(x.data()) + size_of(dtype());
  args.y = static_cast<std::byte*>(y.data()) + size_of(dtype());
  args.x_stride = kIn + 3;
  args.y_stride = 6;
  kernels().linear(args, 0, 4);
  for (std::int64_t i = 0; i < y.count(); ++i) {
    const std::int64_t r = (i - 1) / 6;
    const std::int64_t n = (i - 1) % 6;
    const bool written = i > 0 && n < 4;
    EXPECT_EQ(y.at(i), written ? expected.at(r * 4 + n) : 77.0F) << "element " << i;
  }
}

TEST_P(Linear, AnEmptyRangeWritesNothing) {
  const Problem problem = random_problem(dtype(), 2, 8, 4);
  Array y = random_array(dtype(), 8, 9);
  const Array before = y;
  kernels().linear(arguments(problem, y), 2, 2);
  LinearArgs no_rows = arguments(problem, y);
  no_rows.rows = 0;
  kernels().linear(no_rows, 0, 4);
  EXPECT_EQ(y, before);
}

HYBRIDGEN_FOR_EVERY_ISA_AND_DTYPE(Linear);

}  // namespace
}  // namespace hybridgen::kernels::test
