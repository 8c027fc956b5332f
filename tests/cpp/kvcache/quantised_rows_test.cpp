// SPDX-License-Identifier: Apache-2.0
#include "kvcache/quantised_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "hybridgen/core/error.h"
#include "kvcache/host_kv_store.h"

namespace hybridgen {
namespace {

float from_bfloat16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// A row of `head_dim` as it is read back, by the layout's description alone.
struct Decoded {
  std::vector<float> elements;
  std::vector<float> steps;  ///< of each element's group
};

Decoded decode(KvPrecision precision, std::int64_t head_dim, const std::byte* row) {
  Decoded decoded;
  const std::byte* codes = row;
  const std::byte* ranges = row;
  for (std::int64_t first = 0; first < head_dim; first += kQuantisedGroup) {
    ranges += code_bytes(precision, std::min(kQuantisedGroup, head_dim - first));
  }
  for (std::int64_t first = 0; first < head_dim; first += kQuantisedGroup) {
    const std::int64_t count = std::min(kQuantisedGroup, head_dim - first);
    const std::int64_t half = (count + 1) / 2;
    std::uint16_t minimum = 0;
    std::uint16_t scale = 0;
    std::memcpy(&minimum, ranges, 2);
    std::memcpy(&scale, ranges + 2, 2);
    ranges += 4;
    for (std::int64_t i = 0; i < count; ++i) {
      const int code = precision == KvPrecision::kInt8 ? static_cast<int>(codes[i])
                       : i < half                      ? static_cast<int>(codes[i]) & 0xf
                                                       : static_cast<int>(codes[i - half]) >> 4;
      decoded.elements.push_back(from_bfloat16(minimum) +
                                 from_bfloat16(scale) * static_cast<float>(code));
      decoded.steps.push_back(from_bfloat16(scale));
    }
    codes += code_bytes(precision, count);
  }
  return decoded;
}

std::vector<std::byte> encode(KvPrecision precision, const std::vector<float>& row) {
  const auto dim = static_cast<std::int64_t>(row.size());
  const auto bytes = static_cast<std::size_t>(quantised_row_bytes(precision, dim));
  std::vector<std::byte> out(bytes + 1, std::byte{0x5a});
  quantise_row(precision, DType::kFloat32, row.data(), dim, out.data());
  EXPECT_EQ(out.back(), std::byte{0x5a}) << "beyond the row";
  out.pop_back();
  return out;
}

Decoded through(KvPrecision precision, const std::vector<float>& row) {
  return decode(precision, static_cast<std::int64_t>(row.size()), encode(precision, row).data());
}

std::vector<float> normal_row(std::int64_t dim, unsigned seed, float mean = 0.0F) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(mean, 1.0F);
  std::vector<float> row(static_cast<std::size_t>(dim));
  for (float& x : row) x = normal(random);
  return row;
}

class QuantisedRow : public testing::TestWithParam<KvPrecision> {
 protected:
  static int levels() { return GetParam() == KvPrecision::kInt8 ? 255 : 15; }
};

TEST_P(QuantisedRow, HoldsEveryElementToHalfAStepAndAStepIsTheLeastThatCovers) {
  for (const std::int64_t dim : {1, 2, 7, 16, 63, 64, 65, 80, 96, 128, 130, 256}) {
    for (const float mean : {0.0F, 3.0F, -100.0F}) {
      const std::vector<float> row = normal_row(dim, static_cast<unsigned>(dim), mean);
      const Decoded held = through(GetParam(), row);
      for (std::int64_t first = 0; first < dim; first += kQuantisedGroup) {
        const auto begin = row.begin() + first;
        const auto end = row.begin() + std::min(dim, first + kQuantisedGroup);
        const auto [least, most] = std::minmax_element(begin, end);
        const float step = held.steps[static_cast<std::size_t>(first)];
        // Minimum and step each give way by a bfloat16's last place.
        const float extent = *most - *least + std::abs(*least) / 128.0F;
        EXPECT_LE(step, extent / static_cast<float>(levels()) * (1.0F + 1.0F / 128.0F));
      }
      for (std::size_t i = 0; i < row.size(); ++i) {
        const float rounding = 1e-6F * (std::abs(row[i]) + std::abs(mean) + 8.0F);
        ASSERT_LE(std::abs(held.elements[i] - row[i]), 0.5F * held.steps[i] + rounding)
            << "dim " << dim << ", element " << i;
      }
    }
  }
}

TEST_P(QuantisedRow, OfEqualBfloat16ElementsIsExact) {
  for (const float x : {0.0F, 1.5F, -3.0F, 0x1p-120F, -0x1.fep126F}) {
    const std::vector<float> row(70, x);
    EXPECT_EQ(through(GetParam(), row).elements, row);
  }
}

TEST_P(QuantisedRow, OneLargeElementCostsItsOwnGroupOnly) {
  std::vector<float> row = normal_row(192, 5);
  const Decoded before = through(GetParam(), row);
  row[70] = 1000.0F;
  const Decoded after = through(GetParam(), row);
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (i / 64 != 1) {
      EXPECT_EQ(after.elements[i], before.elements[i]);
    }
    EXPECT_LE(std::abs(after.elements[i] - row[i]), 0.5001F * after.steps[i]);
  }
}

TEST_P(QuantisedRow, AGroupThatIsNotFiniteIsNanThroughoutAndDisturbsNoOther) {
  const std::vector<float> clean = normal_row(160, 6);
  const Decoded held = through(GetParam(), clean);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(),
                          std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    for (const std::size_t place : {std::size_t{0}, std::size_t{63}, std::size_t{159}}) {
      std::vector<float> row = clean;
      row[place] = bad;
      const Decoded after = through(GetParam(), row);
      for (std::size_t i = 0; i < row.size(); ++i) {
        if (i / 64 == place / 64) {
          EXPECT_TRUE(std::isnan(after.elements[i]));
        } else {
          EXPECT_EQ(after.elements[i], held.elements[i]);
        }
      }
    }
  }
}

TEST_P(QuantisedRow, HoldsHugeAndVanishingElements) {
  for (const float scale : {1e-30F, 1e30F, 1e37F}) {
    std::vector<float> row = normal_row(64, 7);
    for (float& x : row) x *= scale;
    const Decoded held = through(GetParam(), row);
    for (std::size_t i = 0; i < row.size(); ++i) {
      EXPECT_LE(std::abs(held.elements[i] - row[i]), 0.5001F * held.steps[i]);
    }
  }
  // Denormal numbers count as their minimum.
  std::vector<float> row(64, 0.0F);
  row[3] = 1e-40F;
  for (const float x : through(GetParam(), row).elements) EXPECT_EQ(x, 0.0F);
  // Further apart than float32 can tell.
  row[3] = 3e38F;
  row[4] = -3e38F;
  for (const float x : through(GetParam(), row).elements) EXPECT_TRUE(std::isnan(x));
}

TEST_P(QuantisedRow, TheSameNumbersInAnyTypeGiveTheSameBytes) {
  std::vector<float> row = normal_row(96, 8);
  std::vector<std::uint16_t> narrow;
  for (float& x : row) {
    const auto bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(x) >> 16);
    narrow.push_back(bits);
    x = from_bfloat16(bits);
  }
  std::vector<std::byte> bytes(static_cast<std::size_t>(quantised_row_bytes(GetParam(), 96)));
  quantise_row(GetParam(), DType::kBFloat16, narrow.data(), 96, bytes.data());
  EXPECT_EQ(bytes, encode(GetParam(), row));
}

INSTANTIATE_TEST_SUITE_P(Precisions,
                         QuantisedRow,
                         testing::Values(KvPrecision::kInt8, KvPrecision::kInt4));

TEST(QuantisedRows, TakeCodesAndFourBytesPerGroup) {
  EXPECT_EQ(quantised_row_bytes(KvPrecision::kInt4, 64), 32 + 4);  // FlexGen's setting
  EXPECT_EQ(quantised_row_bytes(KvPrecision::kInt4, 128), 64 + 8);
  EXPECT_EQ(quantised_row_bytes(KvPrecision::kInt4, 16), 8 + 4);
  EXPECT_EQ(quantised_row_bytes(KvPrecision::kInt4, 79), 32 + 8 + 8);
  EXPECT_EQ(quantised_row_bytes(KvPrecision::kInt8, 64), 64 + 4);
  EXPECT_EQ(quantised_row_bytes(KvPrecision::kInt8, 80), 80 + 8);
}

}  // namespace
}  // namespace hybridgen
