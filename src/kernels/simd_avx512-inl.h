// SPDX-License-Identifier: Apache-2.0
// Sixteen lanes: AVX-512. Part of simd.h, which includes one file of its kind and says what all of
// them define.
namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

using Vector = __m512;
constexpr std::int64_t kLanes = 16;
constexpr int kAccumulators = 24;  ///< vector registers a kernel may spend on sums

HYBRIDGEN_INLINE Vector splat(float value) { return _mm512_set1_ps(value); }
HYBRIDGEN_INLINE Vector load(const float* p) { return _mm512_loadu_ps(p); }
HYBRIDGEN_INLINE Vector load(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
HYBRIDGEN_INLINE Vector widen(__m256i bfloat16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16), 16));
}
HYBRIDGEN_INLINE Vector load(const BFloat16* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
/// Elements 0, 2, 4, ... and 1, 3, 5, ... of 2 * kLanes: cheaper to widen than two halves.
HYBRIDGEN_INLINE void load_even_odd(const BFloat16* p, Vector& even, Vector& odd) {
  const __m512i bits = _mm512_loadu_si512(p);
  even = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-0x10000)));
}
HYBRIDGEN_INLINE void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
/// Stores 2 * kLanes elements that come as those of load_even_odd do, in order.
HYBRIDGEN_INLINE void store_even_odd(float* p, Vector even, Vector odd) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i second =
      _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  store(p, _mm512_permutex2var_ps(even, first, odd));
  store(p + kLanes, _mm512_permutex2var_ps(even, second, odd));
}
HYBRIDGEN_INLINE __m256i narrow_half(Vector v) {
  return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
HYBRIDGEN_INLINE __m256i narrow_bfloat16(Vector v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
}
HYBRIDGEN_INLINE void store(Half* p, Vector v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_half(v));
}
HYBRIDGEN_INLINE void store(BFloat16* p, Vector v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bfloat16(v));
}

HYBRIDGEN_INLINE Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
HYBRIDGEN_INLINE Vector sub(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
HYBRIDGEN_INLINE Vector mul(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
HYBRIDGEN_INLINE Vector div(Vector a, Vector b) { return _mm512_div_ps(a, b); }
HYBRIDGEN_INLINE Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
/// Of both operands b is returned when either is NaN; likewise in the other instruction sets.
HYBRIDGEN_INLINE Vector max_of(Vector a, Vector b) { return _mm512_max_ps(a, b); }
HYBRIDGEN_INLINE Vector min_of(Vector a, Vector b) { return _mm512_min_ps(a, b); }
HYBRIDGEN_INLINE Vector round_even(Vector v) {
  return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/// 2^n for integral n in [-126, 127].
HYBRIDGEN_INLINE Vector power_of_two(Vector n) {
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
}
/// x = mantissa * 2^n with the mantissa in [sqrt(1/2), sqrt(2)); returns n. For normal x > 0.
HYBRIDGEN_INLINE Vector split_exponent(Vector x, Vector& mantissa) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i n = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(kRootHalfBits)), 23);
  mantissa = _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(n, 23)));
  return _mm512_cvtepi32_ps(n);
}
/// v, but 0 where x < limit.
HYBRIDGEN_INLINE Vector zero_where_below(Vector v, Vector x, Vector limit) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), v);
}

/// Lane j of v[i] and lane i of v[j] change places, for all i and j.
HYBRIDGEN_INLINE void transpose(Vector* v) {
  Vector pairs[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  Vector fours[16];  // of each quarter of the lanes, lane i % 4 of four rows
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    fours[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    fours[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Vector even_a = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0x88);
    const Vector odd_a = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0xdd);
    const Vector even_b = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0x88);
    const Vector odd_b = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0xdd);
    v[i] = _mm512_shuffle_f32x4(even_a, even_b, 0x88);
    v[i + 4] = _mm512_shuffle_f32x4(odd_a, odd_b, 0x88);
    v[i + 8] = _mm512_shuffle_f32x4(even_a, even_b, 0xdd);
    v[i + 12] = _mm512_shuffle_f32x4(odd_a, odd_b, 0xdd);
  }
}

HYBRIDGEN_INLINE __m128 fold_to_four(Vector v) {
  const __m256 low = _mm512_castps512_ps256(v);
  const __m256 high = _mm512_extractf32x8_ps(v, 1);
  const __m256 sum = _mm256_add_ps(low, high);
  return _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
}

// A lane beyond `count` is never touched in memory.
HYBRIDGEN_INLINE __mmask16 first_lanes(std::int64_t count) {
  return static_cast<__mmask16>((1U << count) - 1U);
}
HYBRIDGEN_INLINE Vector load_some(const float* p, std::int64_t count, float fill) {
  return _mm512_mask_loadu_ps(splat(fill), first_lanes(count), p);
}
HYBRIDGEN_INLINE Vector load_some(const Half* p, std::int64_t count, float fill) {
  const __mmask16 mask = first_lanes(count);
  return _mm512_mask_blend_ps(
      mask, splat(fill), _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p)));
}
HYBRIDGEN_INLINE Vector load_some(const BFloat16* p, std::int64_t count, float fill) {
  const __mmask16 mask = first_lanes(count);
  return _mm512_mask_blend_ps(mask, splat(fill), widen(_mm256_maskz_loadu_epi16(mask, p)));
}
HYBRIDGEN_INLINE void store_some(float* p, std::int64_t count, Vector v) {
  _mm512_mask_storeu_ps(p, first_lanes(count), v);
}
HYBRIDGEN_INLINE void store_some(Half* p, std::int64_t count, Vector v) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), narrow_half(v));
}
HYBRIDGEN_INLINE void store_some(BFloat16* p, std::int64_t count, Vector v) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), narrow_bfloat16(v));
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
