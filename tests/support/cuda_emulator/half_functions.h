// SPDX-License-Identifier: Apache-2.0
// The functions that the toolkit gives under the same names for __half and __nv_bfloat16.
#pragma once

#include "support/cuda_emulator/half_types.h"

namespace hybridgen::cuda_emulator {

template <typename T>
struct PairedHalf {};
template <>
struct PairedHalf<__half2> {
  using Half = __half;
};
template <>
struct PairedHalf<__nv_bfloat162> {
  using Half = __nv_bfloat16;
};

template <typename T>
concept IsHalfPair = requires { typename PairedHalf<T>::Half; };

}  // namespace hybridgen::cuda_emulator

// NOLINTBEGIN(bugprone-reserved-identifier): CUDA's names

// float32 has more than twice the bits: what it rounds first does not change the second rounding.
template <hybridgen::cuda_emulator::IsHalfType T>
T operator+(T a, T b) {
  using namespace hybridgen::cuda_emulator;
  return rounded<T>(as_float(a) + as_float(b));
}
template <hybridgen::cuda_emulator::IsHalfType T>
T operator-(T a, T b) {
  using namespace hybridgen::cuda_emulator;
  return rounded<T>(as_float(a) - as_float(b));
}
template <hybridgen::cuda_emulator::IsHalfType T>
T operator*(T a, T b) {
  using namespace hybridgen::cuda_emulator;
  return rounded<T>(as_float(a) * as_float(b));
}
template <hybridgen::cuda_emulator::IsHalfType T>
T operator/(T a, T b) {
  using namespace hybridgen::cuda_emulator;
  return rounded<T>(as_float(a) / as_float(b));
}
template <hybridgen::cuda_emulator::IsHalfType T>
T operator-(T a) {
  a.bits ^= 0x8000U;
  return a;
}
template <hybridgen::cuda_emulator::IsHalfType T>
bool operator==(T a, T b) {
  using namespace hybridgen::cuda_emulator;
  return as_float(a) == as_float(b);
}
template <hybridgen::cuda_emulator::IsHalfType T>
bool operator<(T a, T b) {
  using namespace hybridgen::cuda_emulator;
  return as_float(a) < as_float(b);
}
template <hybridgen::cuda_emulator::IsHalfType T>
bool operator>(T a, T b) {
  return b < a;
}

template <hybridgen::cuda_emulator::IsHalfType T>
T __hadd(T a, T b) {
  return a + b;
}
template <hybridgen::cuda_emulator::IsHalfType T>
T __hsub(T a, T b) {
  return a - b;
}
template <hybridgen::cuda_emulator::IsHalfType T>
T __hmul(T a, T b) {
  return a * b;
}
template <hybridgen::cuda_emulator::IsHalfType T>
T __hfma(T a, T b, T c) {
  using namespace hybridgen::cuda_emulator;
  return rounded<T>(multiply_add_to_odd(as_float(a), as_float(b), as_float(c)));
}
/// The larger one; of a number and a NaN, the number.
template <hybridgen::cuda_emulator::IsHalfType T>
T __hmax(T a, T b) {
  using namespace hybridgen::cuda_emulator;
  return rounded<T>(std::fmax(as_float(a), as_float(b)));
}
template <hybridgen::cuda_emulator::IsHalfType T>
T __hmin(T a, T b) {
  using namespace hybridgen::cuda_emulator;
  return rounded<T>(std::fmin(as_float(a), as_float(b)));
}

template <hybridgen::cuda_emulator::IsHalfPair P>
P __hadd2(P a, P b) {
  return {a.x + b.x, a.y + b.y};
}
template <hybridgen::cuda_emulator::IsHalfPair P>
P __hmul2(P a, P b) {
  return {a.x * b.x, a.y * b.y};
}
template <hybridgen::cuda_emulator::IsHalfPair P>
P __hfma2(P a, P b, P c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
template <hybridgen::cuda_emulator::IsHalfPair P>
auto __low2float(P pair) {
  return hybridgen::cuda_emulator::as_float(pair.x);
}
template <hybridgen::cuda_emulator::IsHalfPair P>
auto __high2float(P pair) {
  return hybridgen::cuda_emulator::as_float(pair.y);
}

// NOLINTEND(bugprone-reserved-identifier)
