// SPDX-License-Identifier: Apache-2.0
// Rows that lie as awkwardly as a caller's may, hold what is exact or no number at all, and how
// results are compared.
#pragma once

#include "kernel_test_support.h"

namespace hybridgen::kernels::test {

/// How rows lie: from a multiple of 16 bytes on or `shift` numbers behind it, with gaps between
/// them. What lies in the gaps belongs to somebody else.
struct Layout {
  std::size_t shift = 0;
  std::int64_t gap = 0;
};
/// Rows of the first two are read in packs of 16 bytes if they are wide enough, others are not.
inline constexpr Layout kLayouts[] = {{0, 0}, {0, 8}, {1, 0}, {0, 3}};

/// Makes `dim` numbers from `at` on integers from -3 to 3, the second half mirroring the first with
/// the other sign, all moved by `mean`: their sum, the sum of their squares and of their squared
/// deviations are exact in float32 in any order.
inline void set_mirrored_integers(Array& array,
                                  std::int64_t at,
                                  std::int64_t dim,
                                  float mean = 0.0F) {
  std::mt19937 generator(static_cast<std::uint32_t>(at + dim));
  array.set(at + dim / 2, mean);
  for (std::int64_t i = 0; i < dim / 2; ++i) {
    const float value = static_cast<float>(generator() % 7) - 3.0F;
    array.set(at + i, mean + value);
    array.set(at + dim - 1 - i, mean - value);
  }
}

/// Bits of any kind.
inline void copy_numbers(
    Array& to, std::int64_t at, const Array& from, std::int64_t begin, std::int64_t count) {
  const std::size_t size = size_of(to.dtype());
  std::memcpy(static_cast<std::byte*>(to.data()) + static_cast<std::size_t>(at) * size,
              static_cast<const std::byte*>(from.data()) + static_cast<std::size_t>(begin) * size,
              static_cast<std::size_t>(count) * size);
}

inline void set_nan(Array& array, std::int64_t at) {
  if (array.dtype() == DType::kFloat32) {
    array.set(at, std::numeric_limits<float>::quiet_NaN());
  } else {
    const std::uint16_t nan = 0x7fff;
    std::memcpy(static_cast<std::byte*>(array.data()) + 2 * at, &nan, 2);
  }
}

/// NaN may have other bits, all else may not.
inline bool is_same(float a, float b) {
  return std::isnan(a) ? std::isnan(b)
                       : std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

inline void expect_same(const Array& actual, const Array& expected) {
  ASSERT_EQ(actual.count(), expected.count());
  if (actual == expected) return;  // looking at bytes is fast, decoding them is not
  for (std::int64_t i = 0; i < actual.count(); ++i) {
    ASSERT_TRUE(is_same(actual.at(i), expected.at(i)))
        << "number " << i << ": " << actual.at(i) << " instead of " << expected.at(i);
  }
}

/// Each number within tolerance(its place, its expected value); what is not finite is the same.
template <typename Tolerance>
void expect_near(const Array& actual, const Array& expected, Tolerance tolerance) {
  ASSERT_EQ(actual.count(), expected.count());
  for (std::int64_t i = 0; i < actual.count(); ++i) {
    const double value = expected.at(i);
    if (std::isfinite(value)) {
      ASSERT_NEAR(actual.at(i), value, tolerance(i, value)) << "number " << i;
    } else {
      ASSERT_TRUE(is_same(actual.at(i), expected.at(i)))
          << "number " << i << ": " << actual.at(i) << " instead of " << value;
    }
  }
}

}  // namespace hybridgen::kernels::test
