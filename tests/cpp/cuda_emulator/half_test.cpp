// SPDX-License-Identifier: Apache-2.0
// The emulator's 16-bit types round as the formats' definitions say, which is what the device does.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>

#include "../kernels/kernel_test_support.h"

namespace hybridgen::kernels::test {
namespace {

std::uint16_t bits_of(__half value) { return __half_as_ushort(value); }
std::uint16_t bits_of(__nv_bfloat16 value) { return __bfloat16_as_ushort(value); }

float as_float(DType dtype, std::uint16_t bits) {
  return dtype == DType::kFloat16 ? __half2float(__ushort_as_half(bits))
                                  : __bfloat162float(__ushort_as_bfloat16(bits));
}

std::uint16_t rounded(DType dtype, float value) {
  return dtype == DType::kFloat16 ? bits_of(__float2half_rn(value))
                                  : bits_of(__float2bfloat16_rn(value));
}

class HalfTypes : public testing::TestWithParam<DType> {};

TEST_P(HalfTypes, EveryPatternIsReadAsItsDefinitionSays) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = as_float(GetParam(), static_cast<std::uint16_t>(bits));
    const float expected = decode(GetParam(), static_cast<std::uint16_t>(bits));
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
    } else {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(value), std::bit_cast<std::uint32_t>(expected))
          << bits;
    }
  }
}

// Rounding never turns the order of numbers around, so its steps say what it does everywhere: they
// lie at the middle between neighbours, which itself goes to the even one.
TEST_P(HalfTypes, FloatsRoundToTheNearestAndTiesToTheEvenPattern) {
  const std::uint16_t infinity = GetParam() == DType::kFloat16 ? 0x7c00 : 0x7f80;
  for (std::uint16_t bits = 0; bits + 1 < infinity; ++bits) {
    const auto next = static_cast<std::uint16_t>(bits + 1);
    const float low = decode(GetParam(), bits);
    const float high = decode(GetParam(), next);
    const float middle = low + (high - low) / 2.0F;
    for (const std::uint16_t sign : {0, 0x8000}) {
      const float factor = sign == 0 ? 1.0F : -1.0F;
      const auto rounded_of = [&](float value) {
        return static_cast<std::uint16_t>(rounded(GetParam(), factor * value) ^ sign);
      };
      ASSERT_EQ(rounded_of(low), bits);
      ASSERT_EQ(rounded_of(std::nextafter(middle, low)), bits);
      ASSERT_EQ(rounded_of(middle), bits % 2 == 0 ? bits : next);
      ASSERT_EQ(rounded_of(std::nextafter(middle, high)), next);
    }
  }
  EXPECT_EQ(rounded(GetParam(), std::numeric_limits<float>::max()), infinity);
  EXPECT_EQ(rounded(GetParam(), kInfinity), infinity);
  EXPECT_EQ(rounded(GetParam(), -kInfinity), infinity | 0x8000);
  EXPECT_TRUE(std::isnan(as_float(GetParam(), rounded(GetParam(), NAN))));
}

// Of 65504, the largest float16, half a step above is the first number that rounds to infinity.
TEST(HalfArithmetic, WhatIsTooLargeBecomesInfinity) {
  EXPECT_EQ(bits_of(__float2half(65519.996F)), 0x7bff);
  EXPECT_EQ(bits_of(__float2half(65520.0F)), 0x7c00);
}

template <typename T>
void expect_one_rounding(DType dtype, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<std::uint32_t> patterns(0, 0xffff);
  const auto draw = [&] {
    for (;;) {
      T value;
      value.bits = static_cast<std::uint16_t>(patterns(generator));
      if (std::isfinite(decode(dtype, value.bits))) return value;
    }
  };
  for (int i = 0; i < 20'000; ++i) {
    const T a = draw();
    const T b = draw();
    // Exact in float64, but for a sum of such different sizes that the smaller one changes nothing.
    const double x = static_cast<double>(decode(dtype, a.bits));
    const double y = static_cast<double>(decode(dtype, b.bits));
    ASSERT_EQ(bits_of(__hadd(a, b)), bits_of(cuda_emulator::rounded<T>(x + y)));
    ASSERT_EQ(bits_of(__hmul(a, b)), bits_of(cuda_emulator::rounded<T>(x * y)));
  }
}

TEST(HalfArithmetic, SumsAndProductsRoundOnce) {
  expect_one_rounding<__half>(DType::kFloat16, 1);
  expect_one_rounding<__nv_bfloat16>(DType::kBFloat16, 2);
}

// 1 + 2^-10 times itself is 1 + 2^-9 + 2^-20: a second rounding, of the product, would lose 2^-20,
// which decides here whether the sum lies above the middle between two numbers.
TEST(HalfArithmetic, AFusedMultiplyAddDoesNotRoundItsProduct) {
  const __half a = __float2half(1.0F + 0x1p-10F);
  EXPECT_EQ(__half2float(__hfma(a, a, __float2half(-1.0F - 0x1p-9F))), 0x1p-20F);
  EXPECT_EQ(__half2float(__hfma(a, a, __float2half(0x1p-11F))), 1.0F + 0x1.8p-9F);
  const __nv_bfloat16 b = __float2bfloat16(1.0F + 0x1p-7F);
  EXPECT_EQ(__bfloat162float(__hfma(b, b, __float2bfloat16(-1.0F - 0x1p-6F))), 0x1p-14F);
}

INSTANTIATE_TEST_SUITE_P(Formats,
                         HalfTypes,
                         testing::Values(DType::kFloat16, DType::kBFloat16),
                         [](const auto& param) { return std::string(name_of(param.param)); });

}  // namespace
}  // namespace hybridgen::kernels::test
