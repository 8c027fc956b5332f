// SPDX-License-Identifier: Apache-2.0
#include <memory>

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

/// Memory whose start is aligned to cache lines.
void* aligned(std::vector<std::byte>& memory, std::int64_t bytes) {
  memory.resize(static_cast<std::size_t>(bytes) + 64);
  std::size_t room = memory.size();
  void* at = memory.data();
  return std::align(64, static_cast<std::size_t>(bytes), at, room);
}

/// y by the form whose rows are prepared first.
void prepared(const CpuKernels& kernels, LinearArgs args, std::int64_t begin, std::int64_t end) {
  const PreparedLinear& form = kernels.prepared_linear;
  std::vector<std::byte> rows;
  void* at = aligned(rows, form.rows_bytes(args));
  if (form.rows_bytes(args) > 0) {
    for (std::int64_t block = 0; block * kPreparedRows < args.rows; ++block) {
      form.prepare_rows(args, block, at);
    }
  }
  std::vector<std::byte> scratch;
  form.multiply(args, at, begin, end, aligned(scratch, form.scratch_bytes(args)));
}

void streamed(const CpuKernels& kernels, LinearArgs args, std::int64_t begin, std::int64_t end) {
  kernels.linear(args, begin, end);
}

using Form = void (*)(const CpuKernels&, LinearArgs, std::int64_t, std::int64_t);
constexpr Form kForms[] = {streamed, prepared};
const char* name_of(Form form) { return form == prepared ? "prepared" : "streamed"; }

/// y [rows, out] in float64, and the largest error that summing in float32 and rounding once allow.
struct Expected {
  double value = 0.0;
  double tolerance = 0.0;
};

Expected expected_output(const Problem& problem, std::int64_t r, std::int64_t n, DType y_dtype) {
  double value = problem.bias.at(n);
  double size = std::abs(value);
  for (std::int64_t k = 0; k < problem.in; ++k) {
    const double term = static_cast<double>(problem.x.at(r * problem.in + k)) *
                        static_cast<double>(problem.weight.at(n * problem.in + k));
    value += term;
    size += std::abs(term);
  }
  // Instructions for pairs of bfloat16 numbers round each product and each sum at most once more
  // than multiply-adds do, which sum_error allows for; what they flush to zero is far below
  // absolute_floor.
  return {value,
          size * sum_error(problem.in + 1) + 1.01 * std::abs(value) * unit_roundoff(y_dtype) +
              absolute_floor(y_dtype)};
}

void expect_outputs(Form form, const CpuKernels& kernels, const Problem& problem, DType y_dtype) {
  Array y(y_dtype, problem.rows * problem.out);
  form(kernels, arguments(problem, y), 0, problem.out);
  for (std::int64_t r = 0; r < problem.rows; ++r) {
    for (std::int64_t n = 0; n < problem.out; ++n) {
      const Expected expected = expected_output(problem, r, n, y_dtype);
      ASSERT_NEAR(y.at(r * problem.out + n), expected.value, expected.tolerance)
          << name_of(form) << " rows " << problem.rows << " in " << problem.in << " row " << r
          << " output " << n;
    }
  }
}

TEST_P(Linear, MatchesFloat64ForEveryTileShapeAndTail) {
  for (const Form form : kForms) {
    for (const std::int64_t rows : {1, 2, 3, 4, 5, 6, 8, 16, 33}) {
      for (const std::int64_t in : {1, 7, 16, 31, 33, 63, 64, 65, 200}) {
        for (const DType y_dtype : {dtype(), DType::kFloat32}) {
          expect_outputs(form, kernels(), random_problem(dtype(), rows, in, 5), y_dtype);
        }
      }
    }
  }
}

TEST_P(Linear, MatchesFloat64ForMoreOutputsThanAreTakenAtATime) {
  for (const std::int64_t in : {40, 3000}) {
    LinearArgs args;
    args.dtype = dtype();
    args.rows = 7;
    args.in_features = in;
    const std::int64_t held = kernels().prepared_linear.outputs(args);
    expect_outputs(prepared, kernels(), random_problem(dtype(), 7, in, held + 3), dtype());
  }
}

TEST_P(Linear, InfinitiesAndNaNStayInTheirRowAndOutput) {
  constexpr std::int64_t kRows = 17;
  constexpr std::int64_t kIn = 67;
  constexpr std::int64_t kOut = 35;
  for (const Form form : kForms) {
    for (const float odd : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
      Problem problem = random_problem(dtype(), kRows, kIn, kOut);
      Array clean(dtype(), kRows * kOut);
      form(kernels(), arguments(problem, clean), 0, kOut);
      const std::uint16_t pattern = odd == odd ? 0 : 0x7fff;  // NaN in both 16-bit formats
      const auto put = [&](Array& array, std::int64_t i) {
        if (pattern != 0 && dtype() != DType::kFloat32) {
          std::memcpy(static_cast<std::byte*>(array.data()) + 2 * i, &pattern, 2);
        } else {
          array.set(i, odd);
        }
      };
      put(problem.x, 5 * kIn + 66);
      put(problem.weight, 33 * kIn + 2);
      Array y(dtype(), kRows * kOut);
      form(kernels(), arguments(problem, y), 0, kOut);
      for (std::int64_t r = 0; r < kRows; ++r) {
        for (std::int64_t n = 0; n < kOut; ++n) {
          if (r == 5 || n == 33) {
            EXPECT_FALSE(std::isfinite(y.at(r * kOut + n))) << name_of(form) << r << " " << n;
          } else {
            EXPECT_EQ(y.at(r * kOut + n), clean.at(r * kOut + n)) << name_of(form) << r << " " << n;
          }
        }
      }
    }
  }
}

TEST_P(Linear, ARowsResultDoesNotDependOnTheOtherRows) {
  constexpr std::int64_t kIn = 203;
  constexpr std::int64_t kOut = 39;
  constexpr std::int64_t kMostRows = 34;
  const Problem problem = random_problem(dtype(), kMostRows, kIn, kOut);
  for (const Form form : kForms) {
    Array together(DType::kFloat32, kMostRows * kOut);
    for (std::int64_t rows = 1; rows <= kMostRows; ++rows) {
      LinearArgs args = arguments(problem, together);
      args.rows = rows;
      form(kernels(), args, 0, kOut);
      for (std::int64_t r = 0; r < rows; ++r) {
        Array alone(DType::kFloat32, kOut);
        LinearArgs one = arguments(problem, alone);
        one.rows = 1;
        one.x = static_cast<const std::byte*>(problem.x.data()) +
                static_cast<std::size_t>(r * kIn) * size_of(dtype());
        form(kernels(), one, 0, kOut);
        for (std::int64_t n = 0; n < kOut; ++n) {
          ASSERT_EQ(alone.at(n), together.at(r * kOut + n))
              << name_of(form) << " row " << r << " of " << rows;
        }
      }
    }
  }
}

TEST_P(Linear, TheSplitOfTheOutputsChangesNoBit) {
  constexpr std::int64_t kOut = 37;
  const Problem problem = random_problem(dtype(), 5, 130, kOut);
  for (const Form form : kForms) {
    Array whole(dtype(), 5 * kOut);
    form(kernels(), arguments(problem, whole), 0, kOut);
    for (std::int64_t cut = 0; cut <= kOut; ++cut) {
      Array split(dtype(), 5 * kOut);
      form(kernels(), arguments(problem, split), 0, cut);
      form(kernels(), arguments(problem, split), cut, kOut);
      EXPECT_EQ(split, whole) << name_of(form) << " cut at " << cut;
    }
  }
}

TEST_P(Linear, WithoutBiasIsTheSameAsWithABiasOfZero) {
  Problem problem = random_problem(dtype(), 2, 50, 4);
  problem.bias = Array(dtype(), 4);
  for (const Form form : kForms) {
    Array zero_bias(dtype(), 8);
    form(kernels(), arguments(problem, zero_bias), 0, 4);
    Array no_bias(dtype(), 8);
    LinearArgs args = arguments(problem, no_bias);
    args.bias = nullptr;
    form(kernels(), args, 0, 4);
    EXPECT_EQ(no_bias, zero_bias) << name_of(form);
  }
}

TEST_P(Linear, ReadsAndWritesRowsByTheirStridesOnly) {
  constexpr std::int64_t kIn = 33;
  const Problem dense = random_problem(dtype(), 3, kIn, 4);
  // One element of offset makes every row unaligned; the gaps hold a value that must survive.
  Array x(dtype(), 1 + 3 * (kIn + 3));
  for (std::int64_t i = 0; i < 3 * kIn; ++i)
    x.set(1 + i / kIn * (kIn + 3) + i % kIn, dense.x.at(i));
  for (const Form form : kForms) {
    Array expected(dtype(), 3 * 4);
    form(kernels(), arguments(dense, expected), 0, 4);
    Array y(dtype(), 1 + 3 * 6);
    for (std::int64_t i = 0; i < y.count(); ++i) y.set(i, 77.0F);
    LinearArgs args = arguments(dense, y);
    args.x = static_cast<const std::byte*>(x.data()) + size_of(dtype());
    args.y = static_cast<std::byte*>(y.data()) + size_of(dtype());
    args.x_stride = kIn + 3;
    args.y_stride = 6;
    form(kernels(), args, 0, 4);
    for (std::int64_t i = 0; i < y.count(); ++i) {
      const std::int64_t r = (i - 1) / 6;
      const std::int64_t n = (i - 1) % 6;
      const bool written = i > 0 && n < 4;
      EXPECT_EQ(y.at(i), written ? expected.at(r * 4 + n) : 77.0F)
          << name_of(form) << " element " << i;
    }
  }
}

TEST_P(Linear, AnEmptyRangeWritesNothing) {
  const Problem problem = random_problem(dtype(), 2, 8, 4);
  for (const Form form : kForms) {
    Array y = random_array(dtype(), 8, 9);
    const Array before = y;
    form(kernels(), arguments(problem, y), 2, 2);
    LinearArgs no_rows = arguments(problem, y);
    no_rows.rows = 0;
    form(kernels(), no_rows, 0, 4);
    EXPECT_EQ(y, before) << name_of(form);
  }
}

TEST_P(Linear, WithoutInputsIsTheBias) {
  const Problem problem = random_problem(dtype(), 2, 0, 4);
  for (const Form form : kForms) {
    Array y(dtype(), 8);
    form(kernels(), arguments(problem, y), 0, 4);
    for (std::int64_t i = 0; i < 8; ++i)
      EXPECT_EQ(y.at(i), problem.bias.at(i % 4)) << name_of(form);
  }
}

HYBRIDGEN_FOR_EVERY_ISA_AND_DTYPE(Linear);

}  // namespace
}  // namespace hybridgen::kernels::test
