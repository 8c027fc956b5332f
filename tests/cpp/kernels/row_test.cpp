// SPDX-License-Identifier: Apache-2.0
#include "kernel_test_support.h"

namespace hybridgen::kernels::test {
namespace {

constexpr std::int64_t kWidths[] = {1, 6, 16, 33, 130};

class RowKernels : public KernelTest {
 protected:
  /// One rounding to the dtype of a float32 result that is `terms` roundings away from exact.
  double tolerance(double expected, double size, std::int64_t terms) const {
    return size * sum_error(terms) + 1.01 * std::abs(expected) * unit_roundoff(dtype()) +
           absolute_floor(dtype());
  }
};

TEST_P(RowKernels, RmsNormRoundsTheNormalisedValueBeforeTheWeight) {
  for (const std::int64_t dim : kWidths) {
    const Array x = random_array(dtype(), 3 * dim, 50);
    const Array weight = random_array(dtype(), dim, 51);
    Array y(dtype(), 3 * dim);
    kernels().rms_norm({.dtype = dtype(),
                        .x = x.data(),
                        .weight = weight.data(),
                        .y = y.data(),
                        .rows = 3,
                        .dim = dim,
                        .x_stride = dim,
                        .y_stride = dim,
                        .eps = 1e-5F});
    for (std::int64_t r = 0; r < 3; ++r) {
      double squares = 0.0;
      for (std::int64_t i = 0; i < dim; ++i) {
        squares += std::pow(static_cast<double>(x.at(r * dim + i)), 2);
      }
      const double scale = 1.0 / std::sqrt(squares / static_cast<double>(dim) + 1e-5);
      for (std::int64_t i = 0; i < dim; ++i) {
        const double expected =
            static_cast<double>(x.at(r * dim + i)) * scale * static_cast<double>(weight.at(i));
        // Two roundings to the dtype instead of one.
        ASSERT_NEAR(y.at(r * dim + i),
                    expected,
                    tolerance(expected, std::abs(expected), dim + 8) +
                        1.02 * std::abs(expected) * unit_roundoff(dtype()) +
                        absolute_floor(dtype()) * std::abs(static_cast<double>(weight.at(i))));
      }
    }
  }
}

TEST_P(RowKernels, RmsNormMayWriteOverItsInput) {
  Array x = random_array(dtype(), 2 * 33, 52);
  const Array weight = random_array(dtype(), 33, 53);
  Array y(dtype(), 2 * 33);
  NormArgs args{.dtype = dtype(),
                .x = x.data(),
                .weight = weight.data(),
                .y = y.data(),
                .rows = 2,
                .dim = 33,
                .x_stride = 33,
                .y_stride = 33};
  kernels().rms_norm(args);
  args.y = x.data();
  kernels().rms_norm(args);
  EXPECT_EQ(x, y);
}

TEST_P(RowKernels, LayerNormSubtractsTheMeanAndAddsTheBias) {
  for (const std::int64_t dim : kWidths) {
    Array x = random_array(dtype(), 2 * dim, 54);
    // A mean far from 0: a variance from the mean of the squares would lose its digits.
    for (std::int64_t i = 0; i < x.count(); ++i) x.set(i, x.at(i) + 100.0F);
    const Array weight = random_array(dtype(), dim, 55);
    const Array bias = random_array(dtype(), dim, 56);
    Array y(dtype(), 2 * dim);
    kernels().layer_norm({.dtype = dtype(),
                          .x = x.data(),
                          .weight = weight.data(),
                          .bias = bias.data(),
                          .y = y.data(),
                          .rows = 2,
                          .dim = dim,
                          .x_stride = dim,
                          .y_stride = dim,
                          .eps = 1e-2F});
    for (std::int64_t r = 0; r < 2; ++r) {
      double mean = 0.0;
      for (std::int64_t i = 0; i < dim; ++i) mean += static_cast<double>(x.at(r * dim + i));
      mean /= static_cast<double>(dim);
      double variance = 0.0;
      for (std::int64_t i = 0; i < dim; ++i) {
        variance += std::pow(static_cast<double>(x.at(r * dim + i)) - mean, 2);
      }
      variance /= static_cast<double>(dim);
      const double scale = 1.0 / std::sqrt(variance + static_cast<double>(1e-2F));
      for (std::int64_t i = 0; i < dim; ++i) {
        const double normed = (static_cast<double>(x.at(r * dim + i)) - mean) * scale;
        const double expected =
            normed * static_cast<double>(weight.at(i)) + static_cast<double>(bias.at(i));
        // The mean is off by up to 100 * sum_error, and the result by that times the scale.
        const double size =
            (100.0 * scale + std::abs(normed)) * std::abs(static_cast<double>(weight.at(i))) * 2.0 +
            std::abs(static_cast<double>(bias.at(i)));
        ASSERT_NEAR(y.at(r * dim + i), expected, tolerance(expected, size, dim + 8)) << dim;
      }
    }
  }
}

TEST_P(RowKernels, RotateTurnsEachPairByTheAngleOfItsRowsPosition) {
  constexpr std::int64_t kRows = 3;
  constexpr std::int64_t kHeads = 2;
  for (const std::int64_t head_dim : {2, 10, 64}) {
    const std::int64_t half = head_dim / 2;
    const std::int64_t stride = kHeads * head_dim + 5;
    const std::vector<float> cosines = random_floats(10 * half, 57);
    const std::vector<float> sines = random_floats(10 * half, 58);
    const std::vector<std::int64_t> positions = {9, 0, 4};
    const Array before = random_array(dtype(), kRows * stride, 59);
    Array x = before;
    kernels().rotate({.dtype = dtype(),
                      .x = x.data(),
                      .positions = positions.data(),
                      .cosines = cosines.data(),
                      .sines = sines.data(),
                      .rows = kRows,
                      .heads = kHeads,
                      .head_dim = head_dim,
                      .x_stride = stride});
    for (std::int64_t i = 0; i < x.count(); ++i) {
      const std::int64_t row = i / stride;
      const std::int64_t column = i % stride;
      if (column >= kHeads * head_dim) {
        ASSERT_EQ(x.at(i), before.at(i)) << "the gap between rows";
        continue;
      }
      const std::int64_t d = column % head_dim;
      const auto angle =
          static_cast<std::size_t>(positions[static_cast<std::size_t>(row)] * half + d % half);
      const double other = before.at(d < half ? i + half : i - half);
      const double along = static_cast<double>(before.at(i)) * static_cast<double>(cosines[angle]);
      const double across = (d < half ? -other : other) * static_cast<double>(sines[angle]);
      ASSERT_NEAR(x.at(i),
                  along + across,
                  tolerance(along + across, std::abs(along) + std::abs(across), 2));
    }
  }
}

TEST_P(RowKernels, SiluGateMultipliesTheSigmoidWeightedGate) {
  for (const std::int64_t dim : kWidths) {
    Array gate = random_array(dtype(), 2 * dim, 60);
    for (std::int64_t i = 0; i < gate.count(); ++i) gate.set(i, gate.at(i) * 6.0F);
    const Array up = random_array(dtype(), 2 * dim, 61);
    Array y(dtype(), 2 * dim);
    kernels().silu_gate({.dtype = dtype(),
                         .gate = gate.data(),
                         .up = up.data(),
                         .y = y.data(),
                         .rows = 2,
                         .dim = dim,
                         .gate_stride = dim,
                         .up_stride = dim,
                         .y_stride = dim});
    for (std::int64_t i = 0; i < 2 * dim; ++i) {
      const double g = gate.at(i);
      const double expected = g / (1.0 + std::exp(-g)) * static_cast<double>(up.at(i));
      ASSERT_NEAR(y.at(i), expected, tolerance(expected, std::abs(expected), 8)) << "gate " << g;
    }
  }
}

TEST_P(RowKernels, SiluGateIsFiniteForGatesOfAnySize) {
  Array gate(dtype(), 4);
  Array up(dtype(), 4);
  const float largest = dtype() == DType::kFloat16 ? 6e4F : 1e30F;
  for (const auto& [i, g] :
       {std::pair{0, largest}, std::pair{1, -100.0F}, std::pair{2, 0.0F}, std::pair{3, 200.0F}}) {
    gate.set(i, g);
    up.set(i, 1.0F);
  }
  Array y(dtype(), 4);
  kernels().silu_gate({.dtype = dtype(),
                       .gate = gate.data(),
                       .up = up.data(),
                       .y = y.data(),
                       .rows = 1,
                       .dim = 4,
                       .gate_stride = 4,
                       .up_stride = 4,
                       .y_stride = 4});
  EXPECT_EQ(y.at(0), gate.at(0));
  EXPECT_NEAR(y.at(1), 0.0F, 1e-30);
  EXPECT_EQ(y.at(2), 0.0F);
  EXPECT_EQ(y.at(3), gate.at(3));
}

TEST_P(RowKernels, ReluKeepsWhatIsPositiveAndNaN) {
  for (const std::int64_t count : kWidths) {
    const Array before = random_array(dtype(), count, 62);
    Array x = before;
    kernels().relu(dtype(), x.data(), count);
    for (std::int64_t i = 0; i < count; ++i) EXPECT_EQ(x.at(i), std::max(before.at(i), 0.0F));
  }
  Array x(dtype(), 1);
  if (dtype() == DType::kFloat32) {
    x.set(0, std::numeric_limits<float>::quiet_NaN());
  } else {
    const std::uint16_t nan = 0x7fff;
    std::memcpy(x.data(), &nan, 2);
  }
  kernels().relu(dtype(), x.data(), 1);
  EXPECT_TRUE(std::isnan(x.at(0)));
}

TEST_P(RowKernels, AddIsRoundedOnceToNearestEven) {
  for (const std::int64_t count : kWidths) {
    const Array before = random_array(dtype(), count, 63);
    const Array x = random_array(dtype(), count, 64);
    Array y = before;
    Array expected(dtype(), count);
    kernels().add(dtype(), y.data(), x.data(), count);
    for (std::int64_t i = 0; i < count; ++i) expected.set(i, before.at(i) + x.at(i));
    EXPECT_EQ(y, expected);
  }
}

TEST_P(RowKernels, ScaleToFloatWidensEveryPatternExactly) {
  if (dtype() == DType::kFloat32) {
    const Array x = random_array(dtype(), 37, 65);
    std::vector<float> out(37);
    kernels().scale_to_float(dtype(), x.data(), 0.3F, out.data(), 37);
    for (std::int64_t i = 0; i < 37; ++i) {
      EXPECT_EQ(out[static_cast<std::size_t>(i)], x.at(i) * 0.3F);
    }
    return;
  }
  Array x(dtype(), 65536);
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto pattern = static_cast<std::uint16_t>(bits);
    std::memcpy(static_cast<std::byte*>(x.data()) + 2 * bits, &pattern, 2);
  }
  std::vector<float> out(65536);
  kernels().scale_to_float(dtype(), x.data(), 1.0F, out.data(), 65536);
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const float expected = decode(dtype(), static_cast<std::uint16_t>(bits));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(out[bits])) << "pattern " << bits;
    } else {
      ASSERT_EQ(out[bits], expected) << "pattern " << bits;
    }
  }
}

TEST_P(RowKernels, StoresRoundToNearestEvenIncludingTiesAndSubnormals) {
  // Sums of two 16-bit numbers of different size fall between two neighbours, often half way.
  std::mt19937 generator(66);
  constexpr std::int64_t kCount = 4099;
  Array x(dtype(), kCount);
  Array y(dtype(), kCount);
  for (std::int64_t i = 0; i < kCount; ++i) {
    const std::uint16_t infinity = dtype() == DType::kBFloat16 ? 0x7f80 : 0x7c00;
    const auto a = static_cast<std::uint16_t>(generator() % infinity);
    const auto b = static_cast<std::uint16_t>(generator() % (static_cast<std::uint32_t>(a) + 1U));
    const DType bits = dtype() == DType::kFloat32 ? DType::kFloat16 : dtype();
    x.set(i, decode(bits, a) / 2.0F);
    y.set(i, decode(bits, b) / 2.0F);
  }
  Array expected(dtype(), kCount);
  for (std::int64_t i = 0; i < kCount; ++i) expected.set(i, x.at(i) + y.at(i));
  kernels().add(dtype(), y.data(), x.data(), kCount);
  for (std::int64_t i = 0; i < kCount; ++i) ASSERT_EQ(y.at(i), expected.at(i)) << "x " << x.at(i);
}

TEST_P(RowKernels, EmptyInputsWriteNothing) {
  Array y = random_array(dtype(), 3, 67);
  const Array before = y;
  kernels().add(dtype(), y.data(), y.data(), 0);
  kernels().relu(dtype(), y.data(), 0);
  kernels().rms_norm(
      {.dtype = dtype(), .x = y.data(), .weight = y.data(), .y = y.data(), .dim = 3});
  EXPECT_EQ(y, before);
}

HYBRIDGEN_FOR_EVERY_ISA_AND_DTYPE(RowKernels);

}  // namespace
}  // namespace hybridgen::kernels::test
