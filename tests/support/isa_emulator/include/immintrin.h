// SPDX-License-Identifier: Apache-2.0
// Stands in for the compiler's header of this name: AVX2 and older as they are, AVX-512 by SIMDe
// and, where it lacks an operation that our kernels use, by its definition in the manual.
#pragma once

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cstddef>
#include <cstdint>

namespace hybridgen::emulation {

/// Lanes of the mask come from memory, the others from `v`; memory of the others is not touched.
template <typename Element, typename Vector, typename Mask>
inline Vector load_lanes(Vector v, Mask mask, const void* from) {
  constexpr std::size_t kLanes = sizeof(Vector) / sizeof(Element);
  Element lanes[kLanes];
  __builtin_memcpy(lanes, &v, sizeof(v));
  for (std::size_t i = 0; i < kLanes; ++i) {
    if ((static_cast<std::uint64_t>(mask) >> i & 1U) != 0) {
      __builtin_memcpy(&lanes[i], static_cast<const Element*>(from) + i, sizeof(Element));
    }
  }
  __builtin_memcpy(&v, lanes, sizeof(v));
  return v;
}

template <typename Element, typename Vector, typename Mask>
inline void store_lanes(void* to, Mask mask, Vector v) {
  constexpr std::size_t kLanes = sizeof(Vector) / sizeof(Element);
  Element lanes[kLanes];
  __builtin_memcpy(lanes, &v, sizeof(v));
  for (std::size_t i = 0; i < kLanes; ++i) {
    if ((static_cast<std::uint64_t>(mask) >> i & 1U) != 0) {
      __builtin_memcpy(static_cast<Element*>(to) + i, &lanes[i], sizeof(Element));
    }
  }
}

inline __m256i narrow_to_16_bits(__m512i v) {
  std::int32_t lanes[16];
  std::int16_t narrow[16];
  __builtin_memcpy(lanes, &v, sizeof(v));
  for (int i = 0; i < 16; ++i) narrow[i] = static_cast<std::int16_t>(lanes[i]);
  __m256i result;
  __builtin_memcpy(&result, narrow, sizeof(result));
  return result;
}

inline __m512i widen_8_bits(__m128i v) {
  std::uint8_t lanes[16];
  std::int32_t wide[16];
  __builtin_memcpy(lanes, &v, sizeof(v));
  for (int i = 0; i < 16; ++i) wide[i] = lanes[i];
  __m512i result;
  __builtin_memcpy(&result, wide, sizeof(result));
  return result;
}

template <int Rounding>
inline __m256i to_float16(__m512 v) {
  __m256 halves[2];
  __builtin_memcpy(halves, &v, sizeof(v));
  return _mm256_set_m128i(_mm256_cvtps_ph(halves[1], Rounding),
                          _mm256_cvtps_ph(halves[0], Rounding));
}

template <int Control>
inline __m512 permute_quarters(__m512 v) {
  __m256 halves[2];
  __builtin_memcpy(halves, &v, sizeof(v));
  for (__m256& half : halves) half = _mm256_permute_ps(half, Control);
  __builtin_memcpy(&v, halves, sizeof(v));
  return v;
}

}  // namespace hybridgen::emulation

#undef _mm512_cvtepi32_epi16
#define _mm512_cvtepi32_epi16(v) hybridgen::emulation::narrow_to_16_bits(v)
#undef _mm512_cvtepu8_epi32
#define _mm512_cvtepu8_epi32(v) hybridgen::emulation::widen_8_bits(v)
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(v, rounding) hybridgen::emulation::to_float16<(rounding) & 7>(v)
#undef _mm512_mask_cmp_ps_mask
#define _mm512_mask_cmp_ps_mask(mask, a, b, relation) \
  static_cast<__mmask16>((mask) & _mm512_cmp_ps_mask(a, b, relation))
#undef _mm512_permute_ps
#define _mm512_permute_ps(v, control) hybridgen::emulation::permute_quarters<control>(v)

// SIMDe reads and writes the whole vector, zeros where the mask has none.
#undef _mm256_maskz_loadu_ps
#define _mm256_maskz_loadu_ps(mask, from) \
  hybridgen::emulation::load_lanes<float>(_mm256_setzero_ps(), mask, from)
#undef _mm256_mask_loadu_ps
#define _mm256_mask_loadu_ps(v, mask, from) \
  hybridgen::emulation::load_lanes<float, __m256>(v, mask, from)
#undef _mm256_mask_storeu_ps
#define _mm256_mask_storeu_ps(to, mask, v) \
  hybridgen::emulation::store_lanes<float, __m256>(to, mask, v)
#undef _mm256_maskz_loadu_epi8
#define _mm256_maskz_loadu_epi8(mask, from) \
  hybridgen::emulation::load_lanes<std::int8_t>(_mm256_setzero_si256(), mask, from)
#undef _mm256_mask_loadu_epi8
#define _mm256_mask_loadu_epi8(v, mask, from) \
  hybridgen::emulation::load_lanes<std::int8_t, __m256i>(v, mask, from)
#undef _mm256_mask_storeu_epi8
#define _mm256_mask_storeu_epi8(to, mask, v) \
  hybridgen::emulation::store_lanes<std::int8_t, __m256i>(to, mask, v)
#undef _mm256_maskz_loadu_epi16
#define _mm256_maskz_loadu_epi16(mask, from) \
  hybridgen::emulation::load_lanes<std::int16_t>(_mm256_setzero_si256(), mask, from)
#undef _mm256_mask_loadu_epi16
#define _mm256_mask_loadu_epi16(v, mask, from) \
  hybridgen::emulation::load_lanes<std::int16_t, __m256i>(v, mask, from)
#undef _mm256_mask_storeu_epi16
#define _mm256_mask_storeu_epi16(to, mask, v) \
  hybridgen::emulation::store_lanes<std::int16_t, __m256i>(to, mask, v)
#undef _mm256_maskz_loadu_epi32
#define _mm256_maskz_loadu_epi32(mask, from) \
  hybridgen::emulation::load_lanes<std::int32_t>(_mm256_setzero_si256(), mask, from)
#undef _mm256_mask_loadu_epi32
#define _mm256_mask_loadu_epi32(v, mask, from) \
  hybridgen::emulation::load_lanes<std::int32_t, __m256i>(v, mask, from)
#undef _mm256_mask_storeu_epi32
#define _mm256_mask_storeu_epi32(to, mask, v) \
  hybridgen::emulation::store_lanes<std::int32_t, __m256i>(to, mask, v)
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps(mask, from) \
  hybridgen::emulation::load_lanes<float>(_mm512_setzero_ps(), mask, from)
#undef _mm512_mask_loadu_ps
#define _mm512_mask_loadu_ps(v, mask, from) \
  hybridgen::emulation::load_lanes<float, __m512>(v, mask, from)
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps(to, mask, v) \
  hybridgen::emulation::store_lanes<float, __m512>(to, mask, v)
#undef _mm512_maskz_loadu_epi8
#define _mm512_maskz_loadu_epi8(mask, from) \
  hybridgen::emulation::load_lanes<std::int8_t>(_mm512_setzero_si512(), mask, from)
#undef _mm512_mask_loadu_epi8
#define _mm512_mask_loadu_epi8(v, mask, from) \
  hybridgen::emulation::load_lanes<std::int8_t, __m512i>(v, mask, from)
#undef _mm512_mask_storeu_epi8
#define _mm512_mask_storeu_epi8(to, mask, v) \
  hybridgen::emulation::store_lanes<std::int8_t, __m512i>(to, mask, v)
#undef _mm512_maskz_loadu_epi16
#define _mm512_maskz_loadu_epi16(mask, from) \
  hybridgen::emulation::load_lanes<std::int16_t>(_mm512_setzero_si512(), mask, from)
#undef _mm512_mask_loadu_epi16
#define _mm512_mask_loadu_epi16(v, mask, from) \
  hybridgen::emulation::load_lanes<std::int16_t, __m512i>(v, mask, from)
#undef _mm512_mask_storeu_epi16
#define _mm512_mask_storeu_epi16(to, mask, v) \
  hybridgen::emulation::store_lanes<std::int16_t, __m512i>(to, mask, v)
#undef _mm512_maskz_loadu_epi32
#define _mm512_maskz_loadu_epi32(mask, from) \
  hybridgen::emulation::load_lanes<std::int32_t>(_mm512_setzero_si512(), mask, from)
#undef _mm512_mask_loadu_epi32
#define _mm512_mask_loadu_epi32(v, mask, from) \
  hybridgen::emulation::load_lanes<std::int32_t, __m512i>(v, mask, from)
#undef _mm512_mask_storeu_epi32
#define _mm512_mask_storeu_epi32(to, mask, v) \
  hybridgen::emulation::store_lanes<std::int32_t, __m512i>(to, mask, v)
