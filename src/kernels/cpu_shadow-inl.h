// SPDX-License-Identifier: Apache-2.0
// Scores over a shadow (scoring_shadow.h): u8 codes times s8 queries, summed exactly in integers.
// The four codes of a token that lie together fill one 32-bit lane, so lanes are tokens, as with
// blocked keys. A value is 2 u - most, so the sum of products is 2 sum(q u) - most * sum(q): the
// second part is one constant per query.
#pragma once

#include <type_traits>

#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kShadowPrefetchBytes = 4096;
constexpr int kShadowQueries = kAccumulators >= 24 ? 8 : 4;  ///< that share a load of codes

/// What one pass over a block needs, for `Queries` of the queries.
struct ShadowPass {
  const std::uint8_t* block = nullptr;
  const BFloat16* steps = nullptr;  ///< [32]
  std::int64_t padded_dim = 0;
  const std::int8_t* queries = nullptr;      ///< [Queries, padded_dim]
  const std::int32_t* query_sums = nullptr;  ///< [Queries], times the largest value
  const float* scales = nullptr;             ///< [Queries]
  float* scores = nullptr;                   ///< 32 per query
  std::int64_t scores_stride = 0;
};

constexpr std::int64_t kGroup = 4;  ///< dimensions of a token that lie together
constexpr std::int64_t kGroupBytes = kGroup * kKeyBlockTokens;

#if HYBRIDGEN_ISA_LEVEL > 0

#if HYBRIDGEN_ISA_LEVEL == 2

using Ints = __m512i;

HYBRIDGEN_INLINE Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
HYBRIDGEN_INLINE Ints splat_ints(std::int32_t value) { return _mm512_set1_epi32(value); }
HYBRIDGEN_INLINE Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
HYBRIDGEN_INLINE Ints sub_ints(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
HYBRIDGEN_INLINE Ints and_ints(Ints a, Ints b) { return _mm512_and_si512(a, b); }
HYBRIDGEN_INLINE Vector to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
template <int Bits>
HYBRIDGEN_INLINE Ints shift_words_left(Ints v) {
  return _mm512_slli_epi16(v, Bits);
}
template <int Bits>
HYBRIDGEN_INLINE Ints shift_words_right(Ints v) {
  return _mm512_srli_epi16(v, Bits);
}
template <int Bits>
HYBRIDGEN_INLINE Ints shift_signed_words_right(Ints v) {
  return _mm512_srai_epi16(v, Bits);
}
/// Per lane a0 b0 + a1 b1 of signed 16-bit words.
HYBRIDGEN_INLINE Ints pair_products(Ints a, Ints b) { return _mm512_madd_epi16(a, b); }
/// The same of unsigned times signed bytes, into 16-bit words, cut to their range.
HYBRIDGEN_INLINE Ints byte_pair_products(Ints a, Ints b) { return _mm512_maddubs_epi16(a, b); }

#else

using Ints = __m256i;

HYBRIDGEN_INLINE Ints load_ints(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
HYBRIDGEN_INLINE Ints splat_ints(std::int32_t value) { return _mm256_set1_epi32(value); }
HYBRIDGEN_INLINE Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
HYBRIDGEN_INLINE Ints sub_ints(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
HYBRIDGEN_INLINE Ints and_ints(Ints a, Ints b) { return _mm256_and_si256(a, b); }
HYBRIDGEN_INLINE Vector to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
template <int Bits>
HYBRIDGEN_INLINE Ints shift_words_left(Ints v) {
  return _mm256_slli_epi16(v, Bits);
}
template <int Bits>
HYBRIDGEN_INLINE Ints shift_words_right(Ints v) {
  return _mm256_srli_epi16(v, Bits);
}
template <int Bits>
HYBRIDGEN_INLINE Ints shift_signed_words_right(Ints v) {
  return _mm256_srai_epi16(v, Bits);
}
HYBRIDGEN_INLINE Ints pair_products(Ints a, Ints b) { return _mm256_madd_epi16(a, b); }
HYBRIDGEN_INLINE Ints byte_pair_products(Ints a, Ints b) { return _mm256_maddubs_epi16(a, b); }

#endif

/// Four bytes per lane, and the same widened to words: those at even and those at odd places.
struct Bytes {
  Ints all;
};
struct Words {
  Ints even;
  Ints odd;
};

// Without VNNI, the sum of two byte products is cut to 16 bits. That of 4-bit codes fits; 8-bit
// codes need words.
#if defined(HYBRIDGEN_ISA_VNNI)
template <int Bits>
using Operand = Bytes;
#else
template <int Bits>
using Operand = std::conditional_t<Bits == 4, Bytes, Words>;
#endif

HYBRIDGEN_INLINE void set_codes(Bytes& to, Ints codes) { to.all = codes; }
HYBRIDGEN_INLINE void set_codes(Words& to, Ints codes) {
  to.even = and_ints(codes, splat_ints(0x00ff00ff));
  to.odd = shift_words_right<8>(codes);
}
HYBRIDGEN_INLINE void set_query(Bytes& to, Ints query) { to.all = query; }
HYBRIDGEN_INLINE void set_query(Words& to, Ints query) {
  to.even = shift_signed_words_right<8>(shift_words_left<8>(query));
  to.odd = shift_signed_words_right<8>(query);
}

HYBRIDGEN_INLINE Ints add_products(Ints sums, Words codes, Words query) {
  return add_ints(add_ints(sums, pair_products(codes.even, query.even)),
                  pair_products(codes.odd, query.odd));
}
HYBRIDGEN_INLINE Ints add_products(Ints sums, Bytes codes, Bytes query) {
#if defined(HYBRIDGEN_ISA_VNNI)
  return _mm512_dpbusd_epi32(sums, codes.all, query.all);
#else
  const Ints pairs = byte_pair_products(codes.all, query.all);
  return add_ints(sums, pair_products(pairs, splat_ints(0x00010001)));
#endif
}

template <int Bits, int Queries, Prefetch To>
HYBRIDGEN_INLINE void score_block(const ShadowPass& pass) {
  constexpr int kVectors = 2;
  constexpr std::int64_t kTokens = kVectors * kLanes;
  constexpr int kHalves = Bits == 4 ? 2 : 1;  // groups of dimensions in one byte
  // Evenly over the passes, as in cpu_blocked_logits-inl.h.
  constexpr std::int64_t kAheadBytes = kGroupBytes * kTokens / kKeyBlockTokens;
  const std::uint8_t* ahead = pass.block + kShadowPrefetchBytes;
  for (std::int64_t token = 0; token < kKeyBlockTokens; token += kTokens) {
    Ints sums[extent(Queries)][kVectors];
#pragma GCC unroll 8
    for (int q = 0; q < Queries; ++q) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[q][v] = splat_ints(0);
    }
    const std::uint8_t* row = pass.block + token * kGroup;
#pragma GCC unroll 2
    for (std::int64_t d = 0; d < pass.padded_dim; d += kHalves * kGroup, row += kGroupBytes) {
#pragma GCC unroll 2
      for (std::int64_t byte = 0; byte < kAheadBytes; byte += 64) prefetch_to<To>(ahead + byte);
      ahead += kAheadBytes;
      Ints bytes[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) bytes[v] = load_ints(row + v * kLanes * kGroup);
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half) {
        Operand<Bits> codes[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          const Ints shifted = half == 0 ? bytes[v] : shift_words_right<4>(bytes[v]);
          set_codes(codes[v], Bits == 4 ? and_ints(shifted, splat_ints(0x0f0f0f0f)) : shifted);
        }
#pragma GCC unroll 8
        for (int q = 0; q < Queries; ++q) {
          Operand<Bits> query;
          set_query(query,
                    splat_ints(read_as<std::int32_t>(pass.queries + q * pass.padded_dim + d +
                                                     half * kGroup)));
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) sums[q][v] = add_products(sums[q][v], codes[v], query);
        }
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const std::int64_t first = token + v * kLanes;
      const Vector step = load(pass.steps + first);
#pragma GCC unroll 8
      for (int q = 0; q < Queries; ++q) {
        const Ints sum = sub_ints(add_ints(sums[q][v], sums[q][v]), splat_ints(pass.query_sums[q]));
        const Vector scaled = mul(mul(to_floats(sum), step), splat(pass.scales[q]));
        store(pass.scores + q * pass.scores_stride + first, scaled);
      }
    }
  }
}

#else  // portable

template <int Bits, int Queries, Prefetch /*To*/>
void score_block(const ShadowPass& pass) {
  constexpr int kHalves = Bits == 4 ? 2 : 1;
  for (int q = 0; q < Queries; ++q) {
    const std::int8_t* query = pass.queries + q * pass.padded_dim;
    std::int32_t sums[kKeyBlockTokens] = {};
    const std::uint8_t* row = pass.block;
    for (std::int64_t d = 0; d < pass.padded_dim; d += kHalves * kGroup, row += kGroupBytes) {
      for (int half = 0; half < kHalves; ++half) {
        for (std::int64_t i = 0; i < kGroup; ++i) {
          // NOLINTNEXTLINE(bugprone-signed-char-misuse): a number, not a character
          const std::int32_t factor = query[d + half * kGroup + i];
          for (std::int64_t t = 0; t < kKeyBlockTokens; ++t) {
            const int byte = row[t * kGroup + i];
            sums[t] += factor * (Bits == 4 ? (byte >> (4 * half)) & 0xf : byte);
          }
        }
      }
    }
    for (std::int64_t t = 0; t < kKeyBlockTokens; ++t) {
      const auto sum = static_cast<float>(2 * sums[t] - pass.query_sums[q]);
      pass.scores[q * pass.scores_stride + t] = sum * load_one(pass.steps + t) * pass.scales[q];
    }
  }
}

#endif

template <int Bits, int Queries, Prefetch To>
void scan_shadow_of(const ShadowLogitsArgs& args, std::int64_t first_query) {
  const ShadowKeyView& keys = args.keys;
  std::int32_t query_sums[extent(Queries)] = {};
  ShadowPass pass;
  pass.padded_dim = keys.padded_dim;
  pass.queries = args.queries + first_query * keys.padded_dim;
  pass.query_sums = query_sums;
  pass.scales = args.scales + first_query;
  for (int q = 0; q < Queries; ++q) {
    for (std::int64_t d = 0; d < keys.padded_dim; ++d) {
      query_sums[q] += ((1 << Bits) - 1) * pass.queries[q * keys.padded_dim + d];
    }
  }
  std::int64_t token = args.tokens.begin;
  while (token < args.tokens.end) {
    const std::int64_t block = token / kKeyBlockTokens;
    const std::int64_t from = token - block * kKeyBlockTokens;
    const std::int64_t count = min_of(kKeyBlockTokens - from, args.tokens.end - token);
    const std::byte* data = keys.blocks + block * keys.block_bytes;
    pass.block = reinterpret_cast<const std::uint8_t*>(data);
    pass.steps = reinterpret_cast<const BFloat16*>(
        data + keys.block_bytes - kKeyBlockTokens * static_cast<std::int64_t>(sizeof(BFloat16)));
    float* out = args.scores + first_query * args.scores_stride + (token - args.tokens.begin);
    if (count == kKeyBlockTokens) {
      pass.scores = out;
      pass.scores_stride = args.scores_stride;
      score_block<Bits, Queries, To>(pass);
    } else {
      float whole[extent(Queries * kKeyBlockTokens)];
      pass.scores = whole;
      pass.scores_stride = kKeyBlockTokens;
      score_block<Bits, Queries, To>(pass);
      for (int q = 0; q < Queries; ++q) {
        __builtin_memcpy(out + q * args.scores_stride,
                         whole + q * kKeyBlockTokens + from,
                         static_cast<std::size_t>(count) * sizeof(float));
      }
    }
    token += count;
  }
}

void scan_shadow(const ShadowLogitsArgs& args) {
  for (std::int64_t q = 0; q < args.num_queries; q += kShadowQueries) {
    const std::int64_t count = min_of(kShadowQueries, args.num_queries - q);
    with_constant<kShadowQueries>(count, [&](auto queries) {
      constexpr int kQueries = decltype(queries)::value;
      with_prefetch(args.prefetch, [&](auto to) {
        constexpr Prefetch kTo = decltype(to)::value;
        if (args.keys.precision == ShadowPrecision::kInt8) {
          scan_shadow_of<8, kQueries, kTo>(args, q);
        } else {
          scan_shadow_of<4, kQueries, kTo>(args, q);
        }
      });
    });
  }
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
