// SPDX-License-Identifier: Apache-2.0
// Attention of one KV head's query heads over a run of tokens, in one pass: for 64 tokens at a time
// their logits, a running softmax, and their values, each key and value row being read from memory
// once for all query heads. What a run gives is a part (AttentionPart) that merge_parts joins with
// others. Tiles begin at the run's first token, so a part is a function of its run alone.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

constexpr float kNoToken = -__builtin_inff();

// ---- Elements two vectors at a time ------------------------------------------------------------

/// Elements that load_pair takes. bfloat16 come as those of even and of odd places: a shift and a
/// mask of one load, where their natural order would take two loads and two shuffles.
constexpr std::int64_t kPair = 2 * kLanes;

struct VectorPair {
  Vector first;
  Vector second;
};

/// Place of element `i` of a row in the order of the lanes.
template <typename T>
HYBRIDGEN_INLINE std::int64_t lane_of(std::int64_t i) {
#if HYBRIDGEN_ISA_LEVEL > 0
  if constexpr (__is_same(T, BFloat16)) {
    return i / kPair * kPair + i % kPair / 2 + i % 2 * kLanes;
  }
#endif
  return i;
}

template <typename T>
HYBRIDGEN_INLINE VectorPair load_pair(const T* p) {
  return {load(p), load(p + kLanes)};
}

#if HYBRIDGEN_ISA_LEVEL == 2
HYBRIDGEN_INLINE VectorPair split(__m512i bfloat16) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(bfloat16, 16)),
          _mm512_castsi512_ps(
              _mm512_and_si512(bfloat16, _mm512_set1_epi32(static_cast<int>(0xffff0000U))))};
}
template <>
HYBRIDGEN_INLINE VectorPair load_pair(const BFloat16* p) {
  return split(_mm512_loadu_si512(p));
}
template <typename T>
HYBRIDGEN_INLINE VectorPair load_some_pair(const T* p, std::int64_t count) {
  return {load_up_to(p, count), count > kLanes ? load_up_to(p + kLanes, count - kLanes) : zero()};
}
template <>
HYBRIDGEN_INLINE VectorPair load_some_pair(const BFloat16* p, std::int64_t count) {
  return split(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ULL << count) - 1U), p));
}
#else
#if HYBRIDGEN_ISA_LEVEL == 1
template <>
HYBRIDGEN_INLINE VectorPair load_pair(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)),
          _mm256_castsi256_ps(
              _mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xffff0000U))))};
}
#endif
template <typename T>
HYBRIDGEN_INLINE VectorPair load_some_pair(const T* p, std::int64_t count) {
  T all[extent(kPair)] = {};
  __builtin_memcpy(all, p, static_cast<std::size_t>(count) * sizeof(T));
  return load_pair(static_cast<const T*>(all));
}
#endif

/// All of a pair, or its first `left` elements and zeros.
template <typename T>
HYBRIDGEN_INLINE VectorPair load_pair_up_to(const T* p, std::int64_t left) {
  return left >= kPair ? load_pair(p) : load_some_pair(p, left);
}

// ---- A call's memory ---------------------------------------------------------------------------

/// Rows of keys or of values of a run's tokens.
template <typename T, bool kChosen>
struct Rows {
  const T* data;
  std::int64_t stride;
  const std::int32_t* positions;

  HYBRIDGEN_INLINE const T* at(std::int64_t token) const {
    return data + (kChosen ? positions[token] : token) * stride;
  }
};

/// Float rows of a call, a multiple of kPair long, elements in the order of their lanes.
struct FloatRows {
  float* data;
  std::int64_t stride;

  HYBRIDGEN_INLINE float* of(std::int64_t query) const { return data + query * stride; }
};

/// A tile of a run: tokens [begin, begin + count).
struct Tile {
  std::int64_t begin;
  std::int64_t count;
};

// ---- Logits ------------------------------------------------------------------------------------

/// Query heads that share the loads of a key or value.
constexpr int kAttendQueries = kAccumulators >= 24 ? 4 : 3;
/// Keys whose sums are in registers at a time; AVX2's sixteen hold those of two, and their loads.
constexpr int kAttendKeys = HYBRIDGEN_ISA_LEVEL == 1 ? 2 : 4;
/// Keys whose logits are stored at a time.
constexpr int kStoredKeys = 4;

/// Sums over the lanes of the products of kStoredKeys keys with a query, kAttendKeys given at a
/// time.
class LaneSums {
 public:
  HYBRIDGEN_INLINE void take(int turn, const Vector* products) {
#if HYBRIDGEN_ISA_LEVEL == 1
    pairs_[turn] = _mm256_hadd_ps(products[0], products[1]);
#else
    static_cast<void>(turn);
    sum_lanes_of_four(products, sums_);
#endif
  }
  HYBRIDGEN_INLINE void store_to(float* logits) const {
#if HYBRIDGEN_ISA_LEVEL == 1
    _mm_storeu_ps(logits, fold_to_four(_mm256_hadd_ps(pairs_[0], pairs_[1])));
#else
    __builtin_memcpy(logits, sums_, sizeof(sums_));
#endif
  }

 private:
#if HYBRIDGEN_ISA_LEVEL == 1
  Vector pairs_[2];
#else
  float sums_[kStoredKeys];
#endif
};

/// Logits of `Queries` query heads over a tile. `values`: rows to fetch meanwhile, or null data.
template <typename T, bool kChosen, int Queries>
void tile_logits(Rows<T, kChosen> keys,
                 Rows<T, kChosen> values,
                 Tile tile,
                 std::int64_t head_dim,
                 FloatRows queries,
                 float* logits) {
  constexpr std::int64_t kLine = 64 / static_cast<std::int64_t>(sizeof(T));
  const float* query[extent(Queries)];
#pragma GCC unroll 4
  for (int q = 0; q < Queries; ++q) query[q] = queries.of(q);
  for (std::int64_t token = 0; token < tile.count; token += kStoredKeys) {
    if (values.data != nullptr) {
      for (std::int64_t t = token; t < token + kStoredKeys; ++t) {
        const T* row = values.at(tile.begin + min_of(t, tile.count - 1));
        for (std::int64_t d = 0; d < head_dim; d += kLine) prefetch(row + d);
      }
    }
    LaneSums sums[extent(Queries)];
#pragma GCC unroll 2
    for (int turn = 0; turn < kStoredKeys / kAttendKeys; ++turn) {
      // Past the end the last key is repeated: the tail takes the same path as all others.
      const T* key[kAttendKeys];
#pragma GCC unroll 4
      for (int t = 0; t < kAttendKeys; ++t) {
        key[t] = keys.at(tile.begin + min_of(token + turn * kAttendKeys + t, tile.count - 1));
      }
      Vector products[extent(Queries)][kAttendKeys];
#pragma GCC unroll 4
      for (int q = 0; q < Queries; ++q) {
#pragma GCC unroll 4
        for (int t = 0; t < kAttendKeys; ++t) products[q][t] = zero();
      }
      const auto multiply = [&](std::int64_t d, auto load_elements) {
        VectorPair k[kAttendKeys];
#pragma GCC unroll 4
        for (int t = 0; t < kAttendKeys; ++t) k[t] = load_elements(key[t] + d);
#pragma GCC unroll 4
        for (int q = 0; q < Queries; ++q) {
          Vector a = load(query[q] + d);
          keep_in_register(a);
#pragma GCC unroll 4
          for (int t = 0; t < kAttendKeys; ++t) products[q][t] = fma(a, k[t].first, products[q][t]);
          Vector b = load(query[q] + d + kLanes);
          keep_in_register(b);
#pragma GCC unroll 4
          for (int t = 0; t < kAttendKeys; ++t) {
            products[q][t] = fma(b, k[t].second, products[q][t]);
          }
        }
      };
      std::int64_t d = 0;
      for (; d + kPair <= head_dim; d += kPair) {
        multiply(d, [](const T* p) { return load_pair(p); });
      }
      if (d < head_dim) {
        multiply(d, [left = head_dim - d](const T* p) { return load_some_pair(p, left); });
      }
#pragma GCC unroll 4
      for (int q = 0; q < Queries; ++q) sums[q].take(turn, products[q]);
    }
    // A tile has room for whole fours; what is beyond its tokens is not read.
#pragma GCC unroll 4
    for (int q = 0; q < Queries; ++q) sums[q].store_to(logits + q * kAttendTile + token);
  }
}

// ---- Softmax -----------------------------------------------------------------------------------

/// Of lanes that are no NaN.
HYBRIDGEN_INLINE float largest_lane(Vector v) {
#if HYBRIDGEN_ISA_LEVEL == 2
  return _mm512_reduce_max_ps(v);
#elif HYBRIDGEN_ISA_LEVEL == 1
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
#else
  return max_lane(v);
#endif
}

/// Logits of a tile become weights relative to the largest logit so far, which is raised; what was
/// summed before is to be multiplied by the factor that is returned.
HYBRIDGEN_INLINE float tile_weights(float* logits, std::int64_t count, float& peak, float& sum) {
  Vector largest = splat(peak);
  for (std::int64_t i = 0; i < count; i += kLanes) {
    // A NaN is passed over here, and makes the sum NaN.
    largest = max_of(load_up_to(logits + i, count - i, kNoToken), largest);
  }
  const float before = peak;
  peak = largest_lane(largest);
  // With every logit at -inf, -inf - 0 keeps the weights at 0 where -inf - -inf would give NaN.
  const float shift = peak == kNoToken ? 0.0F : peak;
  Vector sums = zero();
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const Vector weights = exp_of(sub(load_up_to(logits + i, count - i, kNoToken), splat(shift)));
    store(logits + i, weights);
    sums = add(sums, weights);
  }
  float factors[kLanes];
  store(factors, exp_of(splat(before - shift)));
  sum = sum * factors[0] + sum_lanes(sums);
  return factors[0];
}

// ---- Values ------------------------------------------------------------------------------------

/// Dimensions [dim, dim + Pairs * kPair) of the sums of `Queries` query heads.
template <typename T, bool kChosen, int Queries, int Pairs>
HYBRIDGEN_INLINE void tile_columns(const Rows<T, kChosen>& values,
                                   const Tile& tile,
                                   std::int64_t head_dim,
                                   const float* weights,
                                   const float* factors,
                                   const FloatRows& out,
                                   std::int64_t dim) {
  Vector sums[extent(Queries)][extent(2 * Pairs)];
#pragma GCC unroll 4
  for (int q = 0; q < Queries; ++q) {
    const Vector factor = splat(factors[q]);
#pragma GCC unroll 8
    for (int v = 0; v < 2 * Pairs; ++v) {
      sums[q][v] = mul(load(out.of(q) + dim + v * kLanes), factor);
    }
  }
  const std::int64_t left = head_dim - dim;
  for (std::int64_t t = 0; t < tile.count; ++t) {
    const T* row = values.at(tile.begin + t) + dim;
#pragma GCC unroll 4
    for (int p = 0; p < Pairs; ++p) {
      const VectorPair value = Pairs == 1 ? load_pair_up_to(row, left) : load_pair(row + p * kPair);
#pragma GCC unroll 4
      for (int q = 0; q < Queries; ++q) {
        const Vector weight = splat(weights[q * kAttendTile + t]);
        sums[q][2 * p] = fma(weight, value.first, sums[q][2 * p]);
        sums[q][2 * p + 1] = fma(weight, value.second, sums[q][2 * p + 1]);
      }
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < Queries; ++q) {
#pragma GCC unroll 8
    for (int v = 0; v < 2 * Pairs; ++v) store(out.of(q) + dim + v * kLanes, sums[q][v]);
  }
}

/// As many pairs of sums as the registers hold beside a pair of values and the weights.
template <int Queries>
constexpr int kPairsOf = kAccumulators / 3 / Queries >= 4   ? 4
                         : kAccumulators / 3 / Queries >= 2 ? 2
                                                            : 1;

template <typename T, bool kChosen, int Queries, int Pairs = kPairsOf<Queries>>
void tile_values(Rows<T, kChosen> values,
                 Tile tile,
                 std::int64_t head_dim,
                 const float* weights,
                 const float* factors,
                 FloatRows out,
                 std::int64_t dim = 0) {
  for (; dim + Pairs * kPair <= head_dim; dim += Pairs * kPair) {
    tile_columns<T, kChosen, Queries, Pairs>(values, tile, head_dim, weights, factors, out, dim);
  }
  if constexpr (Pairs > 1) {
    tile_values<T, kChosen, Queries, Pairs / 2>(values, tile, head_dim, weights, factors, out, dim);
  } else if (dim < head_dim) {
    tile_columns<T, kChosen, Queries, 1>(values, tile, head_dim, weights, factors, out, dim);
  }
}

// ---- The pass ----------------------------------------------------------------------------------

/// Calls body(first query, constant) for as many query heads at a time as share loads.
template <typename Body>
HYBRIDGEN_INLINE void with_queries(std::int64_t count, Body body) {
  for (std::int64_t q = 0; q < count; q += kAttendQueries) {
    with_constant<kAttendQueries>(min_of(kAttendQueries, count - q),
                                  [&](auto constant) { body(q, constant); });
  }
}

/// A float row in the order of the lanes, and back.
template <typename T>
HYBRIDGEN_INLINE void to_lanes(const float* row, std::int64_t head_dim, float* lanes) {
  std::int64_t d = 0;
  for (; d + kPair <= head_dim; d += kPair) {
    for (std::int64_t i = 0; i < kPair; ++i) lanes[d + lane_of<T>(i)] = row[d + i];
  }
  for (; d < head_dim; ++d) lanes[lane_of<T>(d)] = row[d];
}
template <typename T>
HYBRIDGEN_INLINE void from_lanes(const float* lanes, std::int64_t head_dim, float* row) {
  std::int64_t d = 0;
  for (; d + kPair <= head_dim; d += kPair) {
    for (std::int64_t i = 0; i < kPair; ++i) row[d + i] = lanes[d + lane_of<T>(i)];
  }
  for (; d < head_dim; ++d) row[d] = lanes[lane_of<T>(d)];
}

template <typename T, bool kChosen>
void attend_of(const AttendArgs& args) {
  const std::int64_t num_queries = args.num_queries;
  const std::int64_t head_dim = args.head_dim;
  const std::int64_t padded = (head_dim + kPair - 1) / kPair * kPair;
  const auto misaligned = reinterpret_cast<std::uintptr_t>(args.scratch) % 64;
  float* scratch = args.scratch + (misaligned == 0 ? 0 : (64 - misaligned) / sizeof(float));
  const FloatRows queries{scratch, padded};
  const FloatRows sums{scratch + num_queries * padded, padded};
  float* logits = sums.of(num_queries);
  float* factors = logits + num_queries * kAttendTile;
  const bool has_keys = args.keys != nullptr;
  const Rows<T, kChosen> keys{static_cast<const T*>(args.keys), args.key_stride, args.positions};
  const Rows<T, kChosen> values{
      static_cast<const T*>(args.values), args.value_stride, args.positions};
  __builtin_memset(scratch, 0, static_cast<std::size_t>(2 * num_queries * padded) * sizeof(float));
  for (std::int64_t q = 0; q < num_queries; ++q) {
    if (has_keys) to_lanes<T>(args.queries + q * head_dim, head_dim, queries.of(q));
    args.part.peaks[q] = kNoToken;
    args.part.sums[q] = 0.0F;
  }
  for (Tile tile{0, 0}; tile.begin < args.count; tile.begin += kAttendTile) {
    tile.count = min_of(kAttendTile, args.count - tile.begin);
    if (has_keys) {
      with_queries(num_queries, [&](std::int64_t q, auto constant) {
        tile_logits<T, kChosen, decltype(constant)::value>(keys,
                                                           q == 0 ? values : Rows<T, kChosen>{},
                                                           tile,
                                                           head_dim,
                                                           {queries.of(q), padded},
                                                           logits + q * kAttendTile);
      });
    }
    for (std::int64_t q = 0; q < num_queries; ++q) {
      float* own = logits + q * kAttendTile;
      if (args.logits != nullptr) {
        float* callers = args.logits + q * args.logits_stride + tile.begin;
        const auto bytes = static_cast<std::size_t>(tile.count) * sizeof(float);
        __builtin_memcpy(has_keys ? callers : own, has_keys ? own : callers, bytes);
      }
      factors[q] = tile_weights(own, tile.count, args.part.peaks[q], args.part.sums[q]);
    }
    with_queries(num_queries, [&](std::int64_t q, auto constant) {
      tile_values<T, kChosen, decltype(constant)::value>(
          values, tile, head_dim, logits + q * kAttendTile, factors + q, {sums.of(q), padded});
    });
  }
  for (std::int64_t q = 0; q < num_queries; ++q) {
    from_lanes<T>(sums.of(q), head_dim, args.part.out + q * head_dim);
  }
}

void attend(const AttendArgs& args) {
  with_element_type(args.dtype, [&]<typename T>(const T*) {
    args.positions == nullptr ? attend_of<T, false>(args) : attend_of<T, true>(args);
  });
}

// ---- Parts -------------------------------------------------------------------------------------

/// Weights of the parts of row r into args.shares; returns their peak, and the sum in `sum`.
HYBRIDGEN_INLINE float share_parts(const MergePartsArgs& args, std::int64_t r, float& sum) {
  float peak = kNoToken;
  for (std::int64_t i = 0; i < args.num_parts; ++i) {
    peak = args.parts[i].peaks[r] > peak ? args.parts[i].peaks[r] : peak;
  }
  const float shift = peak == kNoToken ? 0.0F : peak;
  sum = 0.0F;
  for (std::int64_t i = 0; i < args.num_parts; ++i) {
    const AttentionPart& part = args.parts[i];
    args.shares[i] = part.sums[r] == 0.0F ? 0.0F : __builtin_expf(part.peaks[r] - shift);
    sum += args.shares[i] * part.sums[r];
  }
  return shift;
}

void merge_parts(const MergePartsArgs& args) {
  for (std::int64_t r = 0; r < args.rows; ++r) {
    float sum = 0.0F;
    const float shift = share_parts(args, r, sum);
    if (args.lse != nullptr) {
      args.lse[r] = sum == 0.0F ? kNoToken : shift + __builtin_logf(sum);
    }
    if (args.out == nullptr) continue;
    const Vector inverse = splat(sum == 0.0F ? 0.0F : 1.0F / sum);
    with_element_type(args.dtype, [&]<typename T>(const T*) {
      T* out = static_cast<T*>(args.out) + r * args.out_stride;
      for (std::int64_t d = 0; d < args.head_dim; d += kLanes) {
        const std::int64_t left = args.head_dim - d;
        Vector total = zero();
        for (std::int64_t i = 0; i < args.num_parts; ++i) {
          // A part without tokens may hold anything, NaN included.
          if (args.parts[i].sums[r] == 0.0F) continue;
          const float* row = args.parts[i].out + r * args.head_dim + d;
          total = fma(load_up_to(row, left), splat(args.shares[i]), total);
        }
        store_up_to(out + d, left, mul(total, inverse));
      }
    });
  }
}

void softmax_weights(const float* logits, std::int64_t count, float lse, float* weights) {
  // Without a token that counts all weights are 0: -inf - 0 keeps them so.
  const Vector shift = splat(lse == kNoToken ? 0.0F : lse);
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const std::int64_t left = count - i;
    store_up_to(weights + i, left, exp_of(sub(load_up_to(logits + i, left, kNoToken), shift)));
  }
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
