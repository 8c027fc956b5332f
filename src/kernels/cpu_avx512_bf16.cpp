// SPDX-License-Identifier: Apache-2.0
// Compiled with the flags of cpu_avx512.cpp and -mavx512bf16.
#if defined(__x86_64__)
#define HYBRIDGEN_ISA_NAMESPACE avx512_bf16
#define HYBRIDGEN_ISA_LEVEL 2
#define HYBRIDGEN_ISA_BF16
#include "kernels/bf16_logits-inl.h"
#include "kernels/bf16_prefill-inl.h"
#include "kernels/cpu_linear-inl.h"

namespace hybridgen::kernels::avx512_bf16 {
namespace {

constexpr int kPassQueries = 8;

class PairBlocks {
 public:
  PairBlocks(const PackedQueries& queries, std::int64_t num_queries, std::int64_t head_dim)
      : queries_(queries), num_queries_(num_queries), head_dim_(head_dim) {}

  template <Prefetch To>
  void logits(const BFloat16* block, const BFloat16* next, float* out, std::int64_t stride) const {
    for (std::int64_t q = 0; q < num_queries_; q += kPassQueries) {
      with_constant<kPassQueries>(min_of(kPassQueries, num_queries_ - q), [&](auto count) {
        pass<decltype(count)::value, To>(block, q == 0 ? next : block, q, out + q * stride, stride);
      });
    }
  }

 private:
  template <int Queries, Prefetch To>
  HYBRIDGEN_INLINE void pass(const BFloat16* block,
                             const BFloat16* next,
                             std::int64_t first,
                             float* out,
                             std::int64_t stride) const {
    // Interleaving two rows leaves tokens 0-3, 8-11, 16-19, 24-27 in one vector and the others in
    // the second; they are put in order once, at the end.
    Vector low[extent(Queries)];
    Vector high[extent(Queries)];
#pragma GCC unroll 8
    for (int q = 0; q < Queries; ++q) low[q] = high[q] = zero();
#pragma GCC unroll 4
    for (std::int64_t d = 0; d < head_dim_; d += 2) {
      const BFloat16* rows = block + d * kKeyBlockTokens;
      prefetch_to<To>(next + d * kKeyBlockTokens);
      prefetch_to<To>(next + (d + 1) * kKeyBlockTokens);
      const __m512i even = _mm512_loadu_si512(rows);
      const __m512i odd = _mm512_loadu_si512(rows + kKeyBlockTokens);
      const auto low_keys = reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(even, odd));
      const auto high_keys = reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(even, odd));
#pragma GCC unroll 8
      for (int q = 0; q < Queries; ++q) {
        const auto pair = read_as<std::int32_t>(&queries_.values[first + q][d]);
        const auto query = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
        low[q] = _mm512_dpbf16_ps(low[q], low_keys, query);
        high[q] = _mm512_dpbf16_ps(high[q], high_keys, query);
      }
    }
    const __m512i first_half =
        _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second_half =
        _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    const Vector scale = splat(queries_.scale);
#pragma GCC unroll 8
    for (int q = 0; q < Queries; ++q) {
      const Vector a = mul(low[q], scale);
      const Vector b = mul(high[q], scale);
      store(out + q * stride, _mm512_permutex2var_ps(a, first_half, b));
      store(out + q * stride + kLanes, _mm512_permutex2var_ps(a, second_half, b));
    }
  }

  const PackedQueries& queries_;
  std::int64_t num_queries_;
  std::int64_t head_dim_;
};

}  // namespace

void bf16_linear(const LinearArgs& args, std::int64_t begin, std::int64_t end) {
  if (args.dtype != DType::kBFloat16) return avx512::kTable.linear(args, begin, end);
  linear_of<BFloat16>(args, begin, end);
}

void blocked_logits(const BlockedLogitsArgs& args) {
  logits_by_pairs<PairBlocks>(args, avx512::kTable.blocked_logits);
}

void chosen_logits(const ChosenLogitsArgs& args) {
  logits_by_pairs<PairBlocks>(args, avx512::kTable.chosen_logits);
}

std::int64_t prefill_scratch(const PrefillAttentionArgs& args) {
  return has_pairs(args) ? scratch_of<PairProducts>(args) : avx512::kTable.prefill_scratch(args);
}

void prefill_attention(const PrefillAttentionArgs& args) {
  if (!has_pairs(args)) return avx512::kTable.prefill_attention(args);
  prefill_pass<PairProducts>(args);
}

void column_sums(const PrefillAttentionArgs& args) {
  if (!has_pairs(args)) return avx512::kTable.column_sums(args);
  column_pass<PairProducts>(args);
}

}  // namespace hybridgen::kernels::avx512_bf16
#endif
