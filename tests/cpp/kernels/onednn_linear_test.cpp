// SPDX-License-Identifier: Apache-2.0
#include "kernels/onednn_linear.h"

#include "hybridgen/core/error.h"
#include "kernel_test_support.h"

namespace hybridgen::kernels::test {
namespace {

TEST(OneDnnLinear, AgreesWithTheBuiltInKernel) {
  if (!has_onednn()) GTEST_SKIP() << "a build with oneDNN (HYBRIDGEN_HAS_ONEDNN) would run it";
  constexpr std::int64_t kIn = 130;
  constexpr std::int64_t kOut = 37;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const Array weight = random_array(dtype, kOut * kIn, 70);
    const Array bias = random_array(dtype, kOut, 71);
    for (const bool has_bias : {false, true}) {
      const void* bias_data = has_bias ? bias.data() : nullptr;
      OneDnnLinear onednn(dtype, weight.data(), bias_data, kIn, kOut);
      // A row count that comes again uses the primitive of the first time.
      for (const std::int64_t rows : {1, 5, 1, 64, 5}) {
        const Array x = random_array(dtype, rows * kIn, 72);
        Array expected(DType::kFloat32, rows * kOut);
        cpu_kernels(Isa::kPortable)
            .linear({.dtype = dtype,
                     .y_dtype = DType::kFloat32,
                     .x = x.data(),
                     .weight = weight.data(),
                     .bias = bias_data,
                     .y = expected.data(),
                     .rows = rows,
                     .in_features = kIn,
                     .x_stride = kIn,
                     .y_stride = kOut},
                    0,
                    kOut);
        Array y(dtype, rows * kOut);
        onednn.run(x.data(), rows, y.data());
        for (std::int64_t i = 0; i < rows * kOut; ++i) {
          double size = 1.0 + std::abs(static_cast<double>(bias.at(i % kOut)));
          for (std::int64_t k = 0; k < kIn; ++k) {
            size += std::abs(static_cast<double>(x.at(i / kOut * kIn + k)) *
                             static_cast<double>(weight.at(i % kOut * kIn + k)));
          }
          const double rounding =
              std::abs(static_cast<double>(expected.at(i))) * unit_roundoff(dtype) * 1.01;
          ASSERT_NEAR(y.at(i), expected.at(i), 2.0 * size * sum_error(kIn) + rounding)
              << name_of(dtype) << " rows " << rows << " element " << i;
        }
      }
    }
  }
}

TEST(OneDnnLinear, KeepsItsOwnCopyOfTheWeight) {
  if (!has_onednn()) GTEST_SKIP() << "a build with oneDNN (HYBRIDGEN_HAS_ONEDNN) would run it";
  Array weight(DType::kFloat32, 1);
  Array bias(DType::kFloat32, 1);
  weight.set(0, 3.0F);
  bias.set(0, 1.0F);
  OneDnnLinear linear(DType::kFloat32, weight.data(), bias.data(), 1, 1);
  weight.set(0, -1.0F);
  bias.set(0, -1.0F);
  Array x(DType::kFloat32, 1);
  x.set(0, 2.0F);
  Array y(DType::kFloat32, 1);
  linear.run(x.data(), 1, y.data());
  EXPECT_EQ(y.at(0), 7.0F);
}

TEST(OneDnnLinear, RefusesWhatItCannotDo) {
  const Array weight(DType::kFloat16, 4);
  if (has_onednn()) {
    EXPECT_THROW(OneDnnLinear(DType::kFloat16, weight.data(), nullptr, 2, 2), ConfigError);
    EXPECT_THROW(OneDnnLinear(DType::kFloat32, weight.data(), nullptr, 0, 2), ConfigError);
  } else {
    EXPECT_THROW(OneDnnLinear(DType::kFloat32, weight.data(), nullptr, 1, 2), DeviceError);
  }
}

}  // namespace
}  // namespace hybridgen::kernels::test
