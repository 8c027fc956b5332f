// SPDX-License-Identifier: Apache-2.0
// Eight lanes: AVX2, FMA and F16C. Part of simd.h, which includes one file of its kind and says
// what all of them define.
namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

using Vector = __m256;
constexpr std::int64_t kLanes = 8;
constexpr int kAccumulators = 12;

HYBRIDGEN_INLINE Vector splat(float value) { return _mm256_set1_ps(value); }
HYBRIDGEN_INLINE Vector load(const float* p) { return _mm256_loadu_ps(p); }
HYBRIDGEN_INLINE Vector load(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
HYBRIDGEN_INLINE Vector load(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
/// Elements 0, 2, 4, ... and 1, 3, 5, ... of 2 * kLanes: cheaper to widen than two halves.
HYBRIDGEN_INLINE void load_even_odd(const BFloat16* p, Vector& even, Vector& odd) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  odd = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(-0x10000)));
}
HYBRIDGEN_INLINE void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
/// Stores 2 * kLanes elements that come as those of load_even_odd do, in order.
HYBRIDGEN_INLINE void store_even_odd(float* p, Vector even, Vector odd) {
  const Vector low = _mm256_unpacklo_ps(even, odd);
  const Vector high = _mm256_unpackhi_ps(even, odd);
  store(p, _mm256_permute2f128_ps(low, high, 0x20));
  store(p + kLanes, _mm256_permute2f128_ps(low, high, 0x31));
}
HYBRIDGEN_INLINE void store(Half* p, Vector v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
HYBRIDGEN_INLINE void store(BFloat16* p, Vector v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  const __m256i chosen = _mm256_castps_si256(
      _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan));
  const __m256i high = _mm256_srli_epi32(chosen, 16);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}

HYBRIDGEN_INLINE Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
HYBRIDGEN_INLINE Vector sub(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
HYBRIDGEN_INLINE Vector mul(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
HYBRIDGEN_INLINE Vector div(Vector a, Vector b) { return _mm256_div_ps(a, b); }
HYBRIDGEN_INLINE Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
HYBRIDGEN_INLINE Vector max_of(Vector a, Vector b) { return _mm256_max_ps(a, b); }
HYBRIDGEN_INLINE Vector min_of(Vector a, Vector b) { return _mm256_min_ps(a, b); }
HYBRIDGEN_INLINE Vector round_even(Vector v) {
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
HYBRIDGEN_INLINE Vector power_of_two(Vector n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
HYBRIDGEN_INLINE Vector split_exponent(Vector x, Vector& mantissa) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i n = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(kRootHalfBits)), 23);
  mantissa = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(n, 23)));
  return _mm256_cvtepi32_ps(n);
}
HYBRIDGEN_INLINE Vector zero_where_below(Vector v, Vector x, Vector limit) {
  return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLT_UQ), v);
}

HYBRIDGEN_INLINE void transpose(Vector* v) {
  Vector pairs[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  Vector fours[8];
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

HYBRIDGEN_INLINE __m128 fold_to_four(Vector v) {
  return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
