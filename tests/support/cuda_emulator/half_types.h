// SPDX-License-Identifier: Apache-2.0
// __half and __nv_bfloat16 with the toolkit's rounding: every operation is exact, then rounded
// once, to nearest, ties to even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "support/cuda_emulator/vector_types.h"

namespace hybridgen::cuda_emulator {

/// The 16-bit format with so many bits of mantissa that is nearest to `value`.
template <int kMantissaBits>
constexpr std::uint16_t round_to_bits(double value) {
  constexpr int kExponentBits = 15 - kMantissaBits;
  constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  constexpr unsigned kInfinity = ((1U << kExponentBits) - 1) << kMantissaBits;
  const auto bits = std::bit_cast<std::uint64_t>(value);
  const auto sign = static_cast<unsigned>(bits >> 48 & 0x8000U);
  const int exponent = static_cast<int>(bits >> 52 & 0x7ffU) - 1023;
  std::uint64_t mantissa = bits & ((std::uint64_t{1} << 52) - 1);
  if (exponent == 1024) {
    return static_cast<std::uint16_t>(mantissa == 0 ? sign | kInfinity : 0x7fffU);  // NaN
  }
  if (exponent > kBias) return static_cast<std::uint16_t>(sign | kInfinity);
  if (exponent == -1023) return static_cast<std::uint16_t>(sign);  // of float64's subnormals, too
  mantissa |= std::uint64_t{1} << 52;
  // Below the smallest normal number the mantissa loses one bit for each power of two.
  const int below = exponent < 1 - kBias ? 1 - kBias - exponent : 0;
  const int dropped = 52 - kMantissaBits + below;
  if (dropped > 53) return static_cast<std::uint16_t>(sign);
  const std::uint64_t half = std::uint64_t{1} << (dropped - 1);
  const std::uint64_t rest = mantissa & ((half << 1) - 1);
  auto rounded = static_cast<unsigned>(mantissa >> dropped);
  if (rest > half || (rest == half && rounded % 2 == 1)) ++rounded;
  // A carry out of the mantissa raises the exponent, up to infinity.
  const unsigned biased = below > 0 ? 0U : static_cast<unsigned>(exponent + kBias - 1);
  return static_cast<std::uint16_t>(sign | ((biased << kMantissaBits) + rounded));
}

/// Exact.
template <int kMantissaBits>
constexpr float to_float(std::uint16_t bits) {
  if constexpr (kMantissaBits == 7) {
    return std::bit_cast<float>(std::uint32_t{bits} << 16);
  } else {
    const std::uint32_t sign = std::uint32_t{bits} << 16 & 0x80000000U;
    const std::uint32_t exponent = bits >> 10 & 31U;
    const std::uint32_t mantissa = bits & 1023U;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000U | mantissa << 13);
    if (exponent > 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
}

/// a * b + c rounded to odd: rounding that once more to 16 bits is the same as rounding once.
inline double multiply_add_to_odd(double a, double b, double c) {
  const double product = a * b;  // exact for 16-bit operands
  const double sum = product + c;
  const double part = sum - product;
  const double error = (product - (sum - part)) + (c - part);
  auto bits = std::bit_cast<std::uint64_t>(sum);
  if (error == 0.0 || !std::isfinite(sum) || bits % 2 == 1) return sum;
  const bool is_magnitude_larger = (error > 0.0) == (sum > 0.0);
  return std::bit_cast<double>(is_magnitude_larger ? bits + 1 : bits - 1);
}

/// What both types are: 16 bits and how to read them.
template <int kMantissa>
struct HalfType {
  static constexpr int kMantissaBits = kMantissa;
  std::uint16_t bits;
};

template <typename T>
inline constexpr bool is_half_type = false;
template <typename T>
concept IsHalfType = is_half_type<T>;

/// The nearest value of type T.
template <IsHalfType T>
constexpr T rounded(double value) {
  T result;
  result.bits = round_to_bits<T::kMantissaBits>(value);
  return result;
}

template <IsHalfType T>
constexpr float as_float(T value) {
  return to_float<T::kMantissaBits>(value.bits);
}

}  // namespace hybridgen::cuda_emulator

// NOLINTBEGIN(bugprone-reserved-identifier): CUDA's names

struct __half : hybridgen::cuda_emulator::HalfType<10> {};
struct __nv_bfloat16 : hybridgen::cuda_emulator::HalfType<7> {};

template <>
inline constexpr bool hybridgen::cuda_emulator::is_half_type<__half> = true;
template <>
inline constexpr bool hybridgen::cuda_emulator::is_half_type<__nv_bfloat16> = true;

struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

// NOLINTEND(bugprone-reserved-identifier)
