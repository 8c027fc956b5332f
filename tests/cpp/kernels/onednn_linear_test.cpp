// SPDX-License-Identifier: Apache-2.0
#include "kernels/onednn_linear.h"

#include <algorithm>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"
#include "kernel_test_support.h"

namespace hybridgen::kernels::test {
namespace {

TEST(OneDnnLinear, AgreesWithTheBuiltInKernel) {
  if (!has_onednn()) GTEST_SKIP() << "a build with oneDNN (HYBRIDGEN_HAS_ONEDNN) would run it";
  const std::vector<Isa> isas = supported_isas();
  const bool has_avx512 = std::ranges::find(isas, Isa::kAvx512) != isas.end();
  constexpr std::int64_t kIn = 130;
  constexpr std::int64_t kOut = 37;
  constexpr std::int64_t kXStride = kIn + 3;
  constexpr std::int64_t kYStride = kOut + 5;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const Array weight = random_array(dtype, kOut * kIn, 70);
    const Array bias = random_array(dtype, kOut, 71);
    for (const bool has_bias : {false, true}) {
      // A row count that comes again uses what was compiled the first time.
      for (const std::int64_t rows : {0, 1, 5, 1, 64, 5, 200}) {
        const Array x = random_array(dtype, rows * kXStride, 72);
        LinearArgs args;
        args.dtype = dtype;
        args.y_dtype = DType::kFloat32;
        args.x = x.data();
        args.weight = weight.data();
        args.bias = has_bias ? bias.data() : nullptr;
        args.rows = rows;
        args.in_features = kIn;
        args.x_stride = kXStride;
        args.y_stride = kYStride;
        Array expected(DType::kFloat32, rows * kYStride);
        args.y = expected.data();
        cpu_kernels(Isa::kPortable).linear(args, 0, kOut);
        Array y(dtype, rows * kYStride);
        args.y_dtype = dtype;
        args.y = y.data();
        try {
          onednn_linear(args, kOut);
        } catch (const DeviceError& error) {
          // oneDNN multiplies bfloat16 only where the processor has instructions for it.
          ASSERT_TRUE(dtype == DType::kBFloat16 && !has_avx512) << error.what();
          ASSERT_NE(std::string(error.what()).find("built-in"), std::string::npos);
          continue;
        }
        for (std::int64_t i = 0; i < rows * kYStride; ++i) {
          const std::int64_t row = i / kYStride;
          const std::int64_t column = i % kYStride;
          if (column >= kOut) {
            ASSERT_EQ(y.at(i), 0.0F) << "what lies between rows was written";
            continue;
          }
          double size = 1.0 + std::abs(static_cast<double>(bias.at(column)));
          for (std::int64_t k = 0; k < kIn; ++k) {
            size += std::abs(static_cast<double>(x.at(row * kXStride + k)) *
                             static_cast<double>(weight.at(column * kIn + k)));
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

TEST(OneDnnLinear, RefusesWhatItCannotDo) {
  Array array(DType::kFloat32, 4);
  LinearArgs args;
  args.x = array.data();
  args.weight = array.data();
  args.y = array.data();
  args.rows = 1;
  args.in_features = 2;
  args.x_stride = 2;
  args.y_stride = 2;
  if (!has_onednn()) {
    EXPECT_THROW(onednn_linear(args, 2), DeviceError);
    return;
  }
  args.in_features = -2;
  EXPECT_THROW(onednn_linear(args, 2), ConfigError);
  args.in_features = 2;
  args.dtype = args.y_dtype = DType::kFloat16;
  EXPECT_THROW(onednn_linear(args, 2), ConfigError);
  args.dtype = DType::kBFloat16;
  args.y_dtype = DType::kFloat32;
  EXPECT_THROW(onednn_linear(args, 2), ConfigError);
}

}  // namespace
}  // namespace hybridgen::kernels::test
