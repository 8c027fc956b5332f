// SPDX-License-Identifier: Apache-2.0
// One float32 vector type per instruction set, with loads from and stores to float32, float16 and
// bfloat16. Not an ordinary header: a translation unit first defines HYBRIDGEN_ISA_NAMESPACE and
// HYBRIDGEN_ISA_LEVEL (0 portable, 1 AVX2, 2 AVX-512 and beyond) and everything below then lives in
// a namespace of its own, so that the linker can never replace a function for all machines by its
// AVX twin. For the same reason nothing from std is called here.
#pragma once

#if !defined(HYBRIDGEN_ISA_NAMESPACE) || !defined(HYBRIDGEN_ISA_LEVEL)
#error "simd.h is included through the cpu_*.cpp of an instruction set only"
#endif

#include <cstddef>
#include <cstdint>

#include "kernels/cpu_kernels.h"

#if HYBRIDGEN_ISA_LEVEL > 0
#include <immintrin.h>
// GCC 12 takes the deliberately undefined operands of its own AVX-512 intrinsics for mistakes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#endif

#if !defined(HYBRIDGEN_INLINE)  // where these instructions are emulated
#define HYBRIDGEN_INLINE inline __attribute__((always_inline))
#endif

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

/// Length of an array: spares a sign conversion at every register tile.
consteval std::size_t extent(std::int64_t length) { return static_cast<std::size_t>(length); }

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

HYBRIDGEN_INLINE std::int64_t min_of(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

HYBRIDGEN_INLINE void prefetch(const void* address) { __builtin_prefetch(address, 0, 3); }

/// Into the cache `To` and those behind it.
template <Prefetch To>
HYBRIDGEN_INLINE void prefetch_to(const void* address) {
  __builtin_prefetch(address, 0, To == Prefetch::kL1 ? 3 : To == Prefetch::kL2 ? 2 : 1);
}

/// `Lines` lines that follow each other, of what is read after `distance` bytes more: so far ahead
/// that they would leave a first-level cache again, into the second.
template <int Lines>
HYBRIDGEN_INLINE void prefetch_lines(const void* address, std::int64_t distance) {
  constexpr std::int64_t kFar = std::int64_t{8} << 10;
  const auto* line = static_cast<const std::byte*>(address);
  const bool is_far = distance >= kFar;
#pragma GCC unroll 8
  for (int i = 0; i < Lines; ++i, line += 64) {
    is_far ? prefetch_to<Prefetch::kL2>(line) : prefetch(line);
  }
}

// ---- Scalars: bytes are copied, so that neither alignment nor aliasing matters -----------------

template <typename T>
HYBRIDGEN_INLINE T read_as(const void* address) {
  T value;
  __builtin_memcpy(&value, address, sizeof(T));
  return value;
}

template <typename T>
HYBRIDGEN_INLINE void write_as(void* address, T value) {
  __builtin_memcpy(address, &value, sizeof(T));
}

HYBRIDGEN_INLINE float to_float(float value) { return value; }

HYBRIDGEN_INLINE float to_float(BFloat16 value) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(value.bits) << 16);
}

HYBRIDGEN_INLINE float to_float(Half value) {
  const std::uint32_t sign = (value.bits & 0x8000U) << 16;
  const std::uint32_t magnitude = value.bits & 0x7fffU;
  // No float32 on the way is subnormal: workers read those as 0.
  constexpr float kTwoToMinus24 = 0x1p-24F;
  const float subnormal = static_cast<float>(static_cast<std::int32_t>(magnitude)) * kTwoToMinus24;
  const std::uint32_t normal = (magnitude << 13) + 0x38000000U;
  const std::uint32_t bits = magnitude >= 0x7c00U   ? (magnitude << 13) | 0x7f800000U
                             : magnitude >= 0x0400U ? normal
                                                    : __builtin_bit_cast(std::uint32_t, subnormal);
  return __builtin_bit_cast(float, bits | sign);
}

template <typename T>
T from_float(float value);

template <>
HYBRIDGEN_INLINE float from_float<float>(float value) {
  return value;
}

template <>
HYBRIDGEN_INLINE BFloat16 from_float<BFloat16>(float value) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) {
    return {static_cast<std::uint16_t>((bits >> 16) | 0x40U)};
  }
  return {static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16)};
}

template <>
HYBRIDGEN_INLINE Half from_float<Half>(float value) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  std::uint32_t half = 0;
  if (magnitude > 0x7f800000U) {
    half = 0x7e00U | ((magnitude >> 13) & 0x3ffU);
  } else if (magnitude >= 0x477ff000U) {  // 65520 and above round to infinity
    half = 0x7c00U;
  } else if (magnitude >= 0x38800000U) {  // normal in float16
    half = (magnitude - 0x38000000U + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
  } else {
    // Adding 0.5 leaves the subnormal's bits, rounded to nearest even, at the end of the mantissa.
    const float shifted = __builtin_bit_cast(float, magnitude) + 0.5F;
    half = __builtin_bit_cast(std::uint32_t, shifted) - 0x3f000000U;
  }
  return {static_cast<std::uint16_t>(half | sign)};
}

template <typename T>
HYBRIDGEN_INLINE float load_one(const T* address) {
  return to_float(read_as<T>(address));
}

template <typename T>
HYBRIDGEN_INLINE void store_one(T* address, float value) {
  write_as<T>(address, from_float<T>(value));
}

constexpr std::int32_t kRootHalfBits = 0x3f3504f3;  ///< of sqrt(1/2) in float32

// ---- Vectors ----------------------------------------------------------------------------------

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE

#if HYBRIDGEN_ISA_LEVEL == 2
#include "kernels/simd_avx512-inl.h"
#elif HYBRIDGEN_ISA_LEVEL == 1
#include "kernels/simd_avx2-inl.h"
#else
#include "kernels/simd_portable-inl.h"
#endif

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

#if HYBRIDGEN_ISA_LEVEL < 2

template <typename T>
HYBRIDGEN_INLINE Vector load_some(const T* p, std::int64_t count, float fill) {
  float lanes[kLanes];
  for (std::int64_t lane = 0; lane < kLanes; ++lane) {
    lanes[lane] = lane < count ? load_one(p + lane) : fill;
  }
  return load(lanes);
}

template <typename T>
HYBRIDGEN_INLINE void store_some(T* p, std::int64_t count, Vector v) {
  T lanes[kLanes];
  store(lanes, v);
  __builtin_memcpy(p, lanes, static_cast<std::size_t>(count) * sizeof(T));
}

#endif  // AVX-512 has masks

// ---- The same for all --------------------------------------------------------------------------

HYBRIDGEN_INLINE Vector zero() { return splat(0.0F); }

/// Keeps the compiler from loading a value anew for each of its uses.
template <typename Register>
HYBRIDGEN_INLINE void keep_in_register([[maybe_unused]] Register& v) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(v));
#elif HYBRIDGEN_ISA_LEVEL == 1
  __asm__("" : "+x"(v));
#endif
}

/// load, or load_some where fewer than kLanes elements are left.
template <typename T>
HYBRIDGEN_INLINE Vector load_up_to(const T* p, std::int64_t left, float fill = 0.0F) {
  return left >= kLanes ? load(p) : load_some(p, left, fill);
}

template <typename T>
HYBRIDGEN_INLINE void store_up_to(T* p, std::int64_t left, Vector v) {
  if (left >= kLanes) {
    store(p, v);
  } else {
    store_some(p, left, v);
  }
}

/// sums[i] = sum over the lanes of v[i]. Every sum adds in the same order, whichever i it has.
HYBRIDGEN_INLINE void sum_lanes_of_four(const Vector* v, float* sums) {
#if HYBRIDGEN_ISA_LEVEL == 2
  // Halves, then quarters of all four side by side: half as many additions as one by one.
  const auto fold = [](Vector a, Vector b) {
    return add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  };
  const Vector halves_a = fold(v[0], v[1]);
  const Vector halves_b = fold(v[2], v[3]);
  const Vector quarters = add(_mm512_shuffle_f32x4(halves_a, halves_b, 0x88),
                              _mm512_shuffle_f32x4(halves_a, halves_b, 0xdd));
  const Vector pairs = add(quarters, _mm512_permute_ps(quarters, 0xb1));
  const Vector all = add(pairs, _mm512_permute_ps(pairs, 0x4e));
  const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
  _mm_storeu_ps(sums, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, all)));
#elif HYBRIDGEN_ISA_LEVEL == 1
  const __m128 pairs_a = _mm_hadd_ps(fold_to_four(v[0]), fold_to_four(v[1]));
  const __m128 pairs_b = _mm_hadd_ps(fold_to_four(v[2]), fold_to_four(v[3]));
  _mm_storeu_ps(sums, _mm_hadd_ps(pairs_a, pairs_b));
#else
  for (int i = 0; i < 4; ++i) sums[i] = (v[i][0] + v[i][1]) + (v[i][2] + v[i][3]);
#endif
}

HYBRIDGEN_INLINE float sum_lanes(Vector v) {
#if HYBRIDGEN_ISA_LEVEL > 0
  __m128 four = fold_to_four(v);
  four = _mm_hadd_ps(four, four);
  return _mm_cvtss_f32(_mm_hadd_ps(four, four));
#else
  return (v[0] + v[1]) + (v[2] + v[3]);
#endif
}

HYBRIDGEN_INLINE float max_lane(Vector v) {
  float lanes[kLanes];
  store(lanes, v);
  float largest = lanes[0];
  for (std::int64_t lane = 1; lane < kLanes; ++lane) {
    largest = lanes[lane] > largest ? lanes[lane] : largest;
  }
  return largest;
}

/// e^x to about 1e-7 relative for x in [-87, 88]; 0 below (so e^-inf is 0), e^88 above, NaN for
/// NaN.
HYBRIDGEN_INLINE Vector exp_of(Vector x) {
  const Vector lowest = splat(-87.0F);
  // The constant comes first: of a NaN and a constant, max_of and min_of return the second.
  const Vector clamped = min_of(splat(88.0F), max_of(lowest, x));
  const Vector n = round_even(mul(clamped, splat(1.44269504F)));
  // ln 2 in two parts; n times the first is exact.
  Vector r = fma(n, splat(-0.693359375F), clamped);
  r = fma(n, splat(2.12194440e-4F), r);
  // Minimax polynomial of degree 5 for (e^r - 1 - r) / r^2 on [-ln2/2, ln2/2].
  Vector p = splat(1.9875691500e-4F);
  p = fma(p, r, splat(1.3981999507e-3F));
  p = fma(p, r, splat(8.3334519073e-3F));
  p = fma(p, r, splat(4.1665795894e-2F));
  p = fma(p, r, splat(1.6666665459e-1F));
  p = fma(p, r, splat(5.0000001201e-1F));
  p = fma(mul(r, r), p, add(r, splat(1.0F)));
  return zero_where_below(mul(p, power_of_two(n)), x, lowest);
}

/// 2^x to about 3e-7 relative for x in [-126, 127]; 0 below (so 2^-inf is 0), NaN for NaN.
HYBRIDGEN_INLINE Vector exp2_of(Vector x) {
  const Vector lowest = splat(-126.0F);
  const Vector clamped = max_of(lowest, x);
  const Vector n = round_even(clamped);
  const Vector r = sub(clamped, n);
  // Minimax polynomial of degree 5 for 2^r on [-1/2, 1/2], by Estrin's scheme: callers wait for
  // chains of operations more than for their number.
  const Vector square = mul(r, r);
  const Vector p01 = fma(r, splat(0.69314694F), splat(1.0000001F));
  const Vector p23 = fma(r, splat(0.05550713F), splat(0.2402212F));
  const Vector p45 = fma(r, splat(0.0013276472F), splat(0.009675541F));
  const Vector p = fma(mul(square, square), p45, fma(square, p23, p01));
  return zero_where_below(mul(p, power_of_two(n)), x, lowest);
}

/// log2 x to about 3e-7 relative for normal x > 0; for others some number, or NaN.
HYBRIDGEN_INLINE Vector log2_of(Vector x) {
  Vector mantissa;
  const Vector n = split_exponent(x, mantissa);
  const Vector r = sub(mantissa, splat(1.0F));
  // Minimax polynomial of degree 8 for log2(1 + r) / r, by Estrin's scheme.
  const Vector square = mul(r, r);
  const Vector fourth = mul(square, square);
  const Vector p01 = fma(r, splat(-0.72134733F), splat(1.442695F));
  const Vector p23 = fma(r, splat(-0.36070368F), splat(0.48091063F));
  const Vector p45 = fma(r, splat(-0.23894483F), splat(0.28791624F));
  const Vector p67 = fma(r, splat(-0.20726974F), splat(0.2157156F));
  const Vector high = fma(fourth, splat(0.12583701F), fma(square, p67, p45));
  const Vector p = fma(fourth, high, fma(square, p23, p01));
  return fma(r, p, n);
}

/// Calls body(static_cast<const T*>(nullptr)) with the element type of `dtype`.
template <typename Body>
HYBRIDGEN_INLINE void with_element_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(static_cast<const float*>(nullptr));
    case DType::kFloat16:
      return body(static_cast<const Half*>(nullptr));
    case DType::kBFloat16:
      return body(static_cast<const BFloat16*>(nullptr));
  }
}

template <Prefetch To>
struct PrefetchTo {
  static constexpr Prefetch value = To;
};

/// Calls body(PrefetchTo<to>{}): the cache is part of an instruction. Plain loops are not fast
/// enough for it to matter.
template <typename Body>
HYBRIDGEN_INLINE void with_prefetch([[maybe_unused]] Prefetch to, Body body) {
#if HYBRIDGEN_ISA_LEVEL == 0
  body(PrefetchTo<Prefetch::kL1>{});
#else
  switch (to) {
    case Prefetch::kL1:
      return body(PrefetchTo<Prefetch::kL1>{});
    case Prefetch::kL2:
      return body(PrefetchTo<Prefetch::kL2>{});
    case Prefetch::kL3:
      return body(PrefetchTo<Prefetch::kL3>{});
  }
#endif
}

template <int Value>
struct Constant {
  static constexpr int value = Value;
};

/// Calls body(Constant<value>{}), value in [1, Most]: sizes of register tiles are compile-time.
template <int Most, typename Body>
HYBRIDGEN_INLINE void with_constant(std::int64_t value, Body body) {
  if constexpr (Most > 1) {
    if (value < Most) return with_constant<Most - 1>(value, body);
  }
  body(Constant<Most>{});
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
