// SPDX-License-Identifier: Apache-2.0
// Stands in for the toolkit's header of the same name.
#pragma once

#include "support/cuda_emulator/half_functions.h"

// NOLINTBEGIN(bugprone-reserved-identifier): CUDA's names

using half = __half;
using half2 = __half2;

inline __half __float2half(float value) { return hybridgen::cuda_emulator::rounded<__half>(value); }
inline __half __float2half_rn(float value) { return __float2half(value); }
inline float __half2float(__half value) { return hybridgen::cuda_emulator::as_float(value); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
inline __half2 __float22half2_rn(float2 value) { return __floats2half2_rn(value.x, value.y); }
inline __half2 __float2half2_rn(float value) { return __floats2half2_rn(value, value); }
inline float2 __half22float2(__half2 value) {
  return {__half2float(value.x), __half2float(value.y)};
}
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half value) { return {value, value}; }
inline __half __ushort_as_half(unsigned short bits) {
  __half value;
  value.bits = bits;
  return value;
}
inline unsigned short __half_as_ushort(__half value) { return value.bits; }

// NOLINTEND(bugprone-reserved-identifier)
