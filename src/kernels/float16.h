// SPDX-License-Identifier: Apache-2.0
// float16 in portable C++, for code that runs once per tensor or row.
#pragma once

#include <bit>
#include <cstdint>

namespace hybridgen {

inline float from_float16(std::uint16_t bits) {
  const std::uint32_t magnitude = bits & 0x7fffU;
  std::uint32_t wide = 0;
  if (magnitude >= 0x7c00U) {
    wide = (magnitude << 13) | 0x7f800000U;
  } else if (magnitude >= 0x0400U) {
    wide = (magnitude << 13) + 0x38000000U;
  } else {  // no float32 on the way is subnormal: workers read those as 0
    wide = std::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-24F);
  }
  return std::bit_cast<float>(wide | (bits & 0x8000U) << 16);
}

/// To the nearest, ties to even; 65520 and above become infinity.
inline std::uint16_t to_float16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  std::uint32_t half = 0;
  if (magnitude > 0x7f800000U) {
    half = 0x7e00U;
  } else if (magnitude >= 0x477ff000U) {
    half = 0x7c00U;
  } else if (magnitude >= 0x38800000U) {  // normal in float16
    half = (magnitude - 0x38000000U + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
  } else {
    // Adding 0.5 leaves the subnormal's bits, rounded to nearest even, at the mantissa's end.
    half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - 0x3f000000U;
  }
  return static_cast<std::uint16_t>(half | ((bits >> 16) & 0x8000U));
}

}  // namespace hybridgen
