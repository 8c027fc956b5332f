// SPDX-License-Identifier: Apache-2.0
// Random data in every dtype, plain loops in float64 as the oracle, and the list of instruction
// sets.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "hybridgen/core/types.h"
#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels::test {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Half the distance from 1 to the next number: the largest relative error of one rounding.
inline double unit_roundoff(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return std::ldexp(1.0, -24);
    case DType::kFloat16:
      return std::ldexp(1.0, -11);
    case DType::kBFloat16:
      return std::ldexp(1.0, -8);
  }
  return 0.0;
}

/// Relative error of `terms` multiply-adds in float32, in any order: below terms * 2^-24, doubled.
inline double sum_error(std::int64_t terms) {
  return 2.0 * static_cast<double>(terms + 4) * unit_roundoff(DType::kFloat32);
}

/// Half of the spacing of float16's subnormals, where its error is no longer relative.
inline double absolute_floor(DType dtype) {
  return dtype == DType::kFloat16 ? std::ldexp(1.0, -24) : 1e-37;
}

/// A float32 value for every 16-bit pattern, by the definition of the format.
inline float decode(DType dtype, std::uint16_t bits) {
  if (dtype == DType::kBFloat16) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const float sign = (bits & 0x8000) != 0 ? -1.0F : 1.0F;
  if (exponent == 31) {
    return mantissa == 0 ? sign * kInfinity : std::numeric_limits<float>::quiet_NaN();
  }
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
}

/// Nearest 16-bit pattern to `value` (finite), ties to even, found by trying the two neighbours.
inline std::uint16_t encode(DType dtype, float value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const std::uint16_t infinity = dtype == DType::kFloat16 ? 0x7c00 : 0x7f80;
  const double magnitude = std::abs(static_cast<double>(value));
  std::uint16_t low = 0;
  std::uint16_t high = infinity;
  while (high - low > 1) {
    const auto middle = static_cast<std::uint16_t>((low + high) / 2);
    (static_cast<double>(decode(dtype, middle)) <= magnitude ? low : high) = middle;
  }
  // Infinity counts as the next power of two when rounding.
  const double above = high == infinity ? std::ldexp(1.0, dtype == DType::kFloat16 ? 16 : 128)
                                        : static_cast<double>(decode(dtype, high));
  const double to_low = magnitude - static_cast<double>(decode(dtype, low));
  const double to_high = above - magnitude;
  const bool take_high = to_high < to_low || (to_high == to_low && low % 2 == 1);
  return static_cast<std::uint16_t>((take_high ? high : low) | sign);
}

/// Elements of one dtype; written and read as float32.
class Array {
 public:
  Array() = default;
  Array(DType dtype, std::int64_t count)
      : dtype_(dtype), bytes_(static_cast<std::size_t>(count) * size_of(dtype)) {}

  DType dtype() const { return dtype_; }
  std::int64_t count() const { return static_cast<std::int64_t>(bytes_.size() / size_of(dtype_)); }
  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }

  float at(std::int64_t i) const {
    const std::byte* from = bytes_.data() + static_cast<std::size_t>(i) * size_of(dtype_);
    if (dtype_ == DType::kFloat32) {
      float value = 0.0F;
      std::memcpy(&value, from, 4);
      return value;
    }
    std::uint16_t bits = 0;
    std::memcpy(&bits, from, 2);
    return decode(dtype_, bits);
  }

  void set(std::int64_t i, float value) {
    std::byte* to = bytes_.data() + static_cast<std::size_t>(i) * size_of(dtype_);
    if (dtype_ == DType::kFloat32) {
      std::memcpy(to, &value, 4);
    } else {
      const std::uint16_t bits = encode(dtype_, value);
      std::memcpy(to, &bits, 2);
    }
  }

  friend bool operator==(const Array&, const Array&) = default;

 private:
  DType dtype_ = DType::kFloat32;
  std::vector<std::byte> bytes_;
};

inline Array random_array(DType dtype, std::int64_t count, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Array array(dtype, count);
  for (std::int64_t i = 0; i < count; ++i) array.set(i, normal(generator));
  return array;
}

inline std::vector<float> random_floats(std::int64_t count, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(generator);
  return values;
}

/// Row-major keys [capacity, D] put into the blocked layout, element by element.
inline Array block_keys(const Array& rows, std::int64_t head_dim) {
  Array blocked(rows.dtype(), rows.count());
  for (std::int64_t i = 0; i < rows.count(); ++i) {
    const std::int64_t t = i / head_dim;
    const std::int64_t d = i % head_dim;
    blocked.set((t / 32 * head_dim + d) * 32 + t % 32, rows.at(i));
  }
  return blocked;
}

/// Contract of every CPU kernel: run once per supported instruction set and dtype.
class KernelTest : public testing::TestWithParam<std::tuple<Isa, DType>> {
 protected:
  const CpuKernels& kernels() const { return cpu_kernels(std::get<0>(GetParam())); }
  DType dtype() const { return std::get<1>(GetParam()); }
};

inline auto all_dtypes() {
  return testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16);
}

inline std::string kernel_test_name(const testing::TestParamInfo<std::tuple<Isa, DType>>& info) {
  return std::string(name_of(std::get<0>(info.param))) + "_" +
         std::string(name_of(std::get<1>(info.param)));
}

}  // namespace hybridgen::kernels::test

/// Runs the tests of `suite`, a subclass of KernelTest.
#define HYBRIDGEN_FOR_EVERY_ISA_AND_DTYPE(suite)                                     \
  INSTANTIATE_TEST_SUITE_P(Every,                                                    \
                           suite,                                                    \
                           testing::Combine(testing::ValuesIn(supported_isas()),     \
                                            hybridgen::kernels::test::all_dtypes()), \
                           hybridgen::kernels::test::kernel_test_name)
