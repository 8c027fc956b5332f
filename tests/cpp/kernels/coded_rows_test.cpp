// SPDX-License-Identifier: Apache-2.0
#include "kernels/coded_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "kernel_test_support.h"
#include "kernels/float16.h"
#include "runtime/cpus.h"

namespace hybridgen::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct CodedRow {
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;            // float32
  std::vector<float> minima;            // float32
  std::vector<std::uint16_t> scales16;  // float16
  std::vector<std::uint16_t> minima16;
  CodedWeightView view;
  bool is_coded = false;
};

CodedRow coded(const CodedFormat& format, const std::vector<float>& row) {
  CodedRow result;
  const auto inputs = static_cast<std::int64_t>(row.size());
  const auto groups = static_cast<std::size_t>(coded_groups(inputs, format.group));
  result.codes.resize(static_cast<std::size_t>(coded_row_bytes(format.bits, inputs)), 0xee);
  result.scales.resize(groups);
  result.minima.resize(groups);
  result.scales16.resize(groups);
  result.minima16.resize(groups);
  const bool wide = format.scale_dtype == DType::kFloat32;
  void* scales = wide ? static_cast<void*>(result.scales.data()) : result.scales16.data();
  void* minima = wide ? static_cast<void*>(result.minima.data()) : result.minima16.data();
  if (!format.has_minima) minima = nullptr;
  result.is_coded = quantise_row(format, row.data(), inputs, result.codes.data(), scales, minima);
  result.view = {.bits = format.bits,
                 .group = format.group,
                 .inputs = inputs,
                 .codes = result.codes.data(),
                 .scale_dtype = format.scale_dtype,
                 .scales = scales,
                 .minima = minima};
  return result;
}

std::vector<float> restored(const CodedRow& row) {
  std::vector<float> values(static_cast<std::size_t>(row.view.inputs));
  restore_row(row.view, 0, values.data());
  return values;
}

TEST(CodedRows, ReadBackWhatWasPackedAtEveryLength) {
  for (const int bits : {8, 4}) {
    for (std::int64_t inputs = 1; inputs < 200; ++inputs) {
      std::vector<std::int8_t> codes(static_cast<std::size_t>(inputs));
      for (std::size_t i = 0; i < codes.size(); ++i) {
        codes[i] = static_cast<std::int8_t>(bits == 8 ? 37 * i : 7 * i % 16);
      }
      std::vector<std::uint8_t> row(static_cast<std::size_t>(coded_row_bytes(bits, inputs)), 0xff);
      EXPECT_EQ(row.size() % 32, 0U);
      pack_row(bits, codes.data(), inputs, row.data());
      std::vector<std::int8_t> back(codes.size());
      unpack_row(bits, row.data(), inputs, back.data());
      ASSERT_EQ(back, codes) << bits << " bits, " << inputs << " inputs";
    }
  }
}

TEST(CodedRows, OfFourBitsLieAsTheBlocksOfQ4_0Do) {
  std::vector<std::int8_t> codes(40, 0);
  codes[0] = 1;
  codes[16] = 2;
  codes[31] = 15;
  codes[33] = 9;
  std::vector<std::uint8_t> row(32);
  pack_row(4, codes.data(), 40, row.data());
  EXPECT_EQ(row[0], 0x21);
  EXPECT_EQ(row[15], 0xf0);
  EXPECT_EQ(row[16 + 1], 0x09);
}

TEST(CodedRows, OfEightBitsLieInOrderWithZerosBehind) {
  const std::vector<std::int8_t> codes = {-128, -1, 127};
  std::vector<std::uint8_t> row(32, 0xff);
  pack_row(8, codes.data(), 3, row.data());
  std::vector<std::uint8_t> expected(32, 0);
  expected[0] = 0x80;
  expected[1] = 0xff;
  expected[2] = 0x7f;
  EXPECT_EQ(row, expected);
}

TEST(CodedRows, HoldEveryElementToHalfAStep) {
  for (const std::int64_t inputs : {1, 31, 64, 100, 576}) {
    const std::vector<float> row = test::random_floats(inputs, static_cast<std::uint32_t>(inputs));
    for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
      for (const CodedFormat& format : {CodedFormat{8, inputs, false, dtype},
                                        CodedFormat{8, 16, false, dtype},
                                        CodedFormat{4, 32, false, dtype},
                                        CodedFormat{4, 64, true, dtype},
                                        CodedFormat{4, 128, true, dtype}}) {
        const CodedRow coded_row = coded(format, row);
        ASSERT_TRUE(coded_row.is_coded);
        const std::vector<float> values = restored(coded_row);
        for (std::int64_t i = 0; i < inputs; ++i) {
          const auto first = row.begin() + i / format.group * format.group;
          const auto last = row.begin() + std::min(inputs, (i / format.group + 1) * format.group);
          const auto [least, most] = std::minmax_element(first, last);
          const double peak = std::max(std::abs(*least), std::abs(*most));
          const double range = static_cast<double>(*most) - *least;
          double step = format.has_minima ? range / 15 : format.bits == 8 ? peak / 127 : peak / 8;
          // Of 4 bits the other sign ends at 7 steps, so that elements there may lose a step.
          const bool is_cut = format.bits == 4 && !format.has_minima;
          const double rounding = dtype == DType::kFloat16 ? 16 * 0x1p-11 * peak : 1e-6 * peak;
          const auto at = static_cast<std::size_t>(i);
          ASSERT_NEAR(values[at], row[at], (is_cut ? 1.0 : 0.5) * step + rounding)
              << format.bits << " bits, group " << format.group << ", element " << i;
        }
      }
    }
  }
}

TEST(CodedRows, KeepTheElementOfTheLargestMagnitudeOfFourBits) {
  std::vector<float> row(64, 0.25F);
  row[5] = 4.0F;
  row[40] = -2.0F;
  const std::vector<float> values = restored(coded({4, 32, false, DType::kFloat16}, row));
  EXPECT_EQ(values[5], 4.0F);
  EXPECT_EQ(values[40], -2.0F);
}

TEST(CodedRows, OfZerosAreZerosAndOfOneNumberWithMinimaThatNumber) {
  const std::vector<float> zeros(70, 0.0F);
  EXPECT_EQ(restored(coded({8, 70, false, DType::kFloat32}, zeros)), zeros);
  EXPECT_EQ(restored(coded({4, 64, false, DType::kFloat16}, zeros)), zeros);
  const std::vector<float> same(70, -0.5F);
  EXPECT_EQ(restored(coded({4, 64, true, DType::kFloat16}, same)), same);
}

TEST(CodedRows, RefuseWhatIsNotFiniteAndWhatTheirScalesCannotHold) {
  for (const float odd : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> row(70, 1.0F);
    row[69] = odd;
    EXPECT_FALSE(coded({8, 70, false, DType::kFloat32}, row).is_coded);
    EXPECT_FALSE(coded({4, 64, true, DType::kFloat16}, row).is_coded);
  }
  const std::vector<float> large(64, 1e6F);
  EXPECT_FALSE(coded({4, 64, false, DType::kFloat16}, large).is_coded);
  EXPECT_TRUE(coded({4, 64, false, DType::kFloat32}, large).is_coded);
}

TEST(CodedRows, ARangeOfOutputsIsAMatrixOfItsOwn) {
  std::vector<std::uint8_t> codes(3 * 64);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(11 * i);
  const std::vector<float> scales = {1, 2, 3, 4, 5, 6};
  const std::vector<float> minima = {-1, -2, -3, -4, -5, -6};
  const CodedWeightView view = {.bits = 4,
                                .group = 64,
                                .inputs = 100,
                                .codes = codes.data(),
                                .scales = scales.data(),
                                .minima = minima.data()};
  std::vector<float> whole(100);
  std::vector<float> part(100);
  restore_row(view, 2, whole.data());
  restore_row(view.from(1), 1, part.data());
  EXPECT_EQ(part, whole);
  EXPECT_EQ(whole[0], 5.0F * (codes[128] & 0xf) - 5.0F);
}

TEST(CodedRows, ShapesAreEightOrFourBitsWithWholeBlocksInAGroup) {
  EXPECT_TRUE(is_coded_shape(8, 50, 50));
  EXPECT_TRUE(is_coded_shape(8, 64, 16));
  EXPECT_TRUE(is_coded_shape(4, 64, 32));
  EXPECT_FALSE(is_coded_shape(4, 64, 16));
  EXPECT_FALSE(is_coded_shape(5, 64, 32));
  EXPECT_FALSE(is_coded_shape(8, 64, 0));
}

TEST(Float16, OfEveryPatternIsReadAndWrittenBack) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto pattern = static_cast<std::uint16_t>(bits);
    const float value = from_float16(pattern);
    if ((pattern & 0x7fffU) > 0x7c00U) {
      EXPECT_TRUE(std::isnan(value));
    } else {
      ASSERT_EQ(value, test::decode(DType::kFloat16, pattern));
      ASSERT_EQ(to_float16(value), pattern);
    }
  }
  EXPECT_EQ(to_float16(65519.0F), 0x7bff);
  EXPECT_EQ(to_float16(65520.0F), 0x7c00);
  EXPECT_EQ(to_float16(1.0F + 0x1p-11F), 0x3c00);
}

TEST(Float16, OfEveryPatternIsTheSameInAWorkerWhichReadsSubnormalsAsZero) {
  std::vector<std::uint16_t> read_back(0x10000);
  std::thread([&] {
    flush_denormals_in_current_thread();
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
      read_back[bits] = to_float16(from_float16(static_cast<std::uint16_t>(bits)));
    }
  }).join();
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    if ((bits & 0x7fffU) > 0x7c00U) continue;
    ASSERT_EQ(read_back[bits], bits);
  }
}

}  // namespace
}  // namespace hybridgen::kernels
