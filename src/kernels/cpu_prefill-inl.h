// SPDX-License-Identifier: Apache-2.0
// Attention of many query rows over many keys, in one pass over the keys with a running softmax.
// Everything is float32 in the caller's scratch: a block of keys is transposed and a block of
// values widened once for all rows and heads of a task, so that both products are the same register
// tile.
#pragma once

#include "kernels/cpu_attention-inl.h"
#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

constexpr int kPrefillVectors = 4;
constexpr int kPrefillRows = kAccumulators / kPrefillVectors;
constexpr std::int64_t kPrefillKeys = 64;
static_assert(kPrefillKeys % (kPrefillVectors * kLanes) == 0);

HYBRIDGEN_INLINE std::int64_t round_up(std::int64_t value, std::int64_t step) {
  return (value + step - 1) / step * step;
}

/// c [kPrefillRows, Vectors * kLanes] = (or += with Add) a [kPrefillRows, depth] b [depth, ...].
template <int Vectors, bool Add>
HYBRIDGEN_INLINE void prefill_tile(const float* a,
                                   std::int64_t a_stride,
                                   const float* b,
                                   std::int64_t b_stride,
                                   std::int64_t depth,
                                   float* c,
                                   std::int64_t c_stride) {
  Vector acc[extent(kPrefillRows)][extent(Vectors)];
  for (int r = 0; r < kPrefillRows; ++r) {
    for (int v = 0; v < Vectors; ++v) {
      acc[r][v] = Add ? load(c + r * c_stride + v * kLanes) : zero();
    }
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    Vector wide[extent(Vectors)];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) wide[v] = load(b + k * b_stride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kPrefillRows; ++r) {
      const Vector one = splat(a[r * a_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) acc[r][v] = fma(one, wide[v], acc[r][v]);
    }
  }
  for (int r = 0; r < kPrefillRows; ++r) {
    for (int v = 0; v < Vectors; ++v) store(c + r * c_stride + v * kLanes, acc[r][v]);
  }
}

/// c [kPrefillRows, width] with width a multiple of kLanes.
template <bool Add>
HYBRIDGEN_INLINE void prefill_product(const float* a,
                                      std::int64_t a_stride,
                                      const float* b,
                                      std::int64_t width,
                                      std::int64_t depth,
                                      float* c) {
  std::int64_t at = 0;
  for (; at + kPrefillVectors * kLanes <= width; at += kPrefillVectors * kLanes) {
    prefill_tile<kPrefillVectors, Add>(a, a_stride, b + at, width, depth, c + at, width);
  }
  for (; at < width; at += kLanes) {
    prefill_tile<1, Add>(a, a_stride, b + at, width, depth, c + at, width);
  }
}

/// Where things lie in the scratch.
struct PrefillScratch {
  explicit PrefillScratch(const PrefillAttentionArgs& args)
      : width(round_up(args.head_dim, kLanes)),
        rows(round_up(args.rows, kPrefillRows)),
        queries(args.scratch),
        sums(queries + args.num_queries * rows * args.head_dim),
        peaks(sums + args.num_queries * rows * width),
        totals(peaks + args.num_queries * rows),
        keys(totals + args.num_queries * rows),
        values(keys + args.head_dim * kPrefillKeys),
        weights(values + kPrefillKeys * width),
        end(weights + kPrefillRows * kPrefillKeys) {}

  std::int64_t width;  ///< of a row of values and sums: D rounded up to whole vectors
  std::int64_t rows;   ///< of one head, rounded up to whole tiles
  float* queries;      ///< [heads, rows, D], scaled
  float* sums;         ///< [heads, rows, width] of weighted values
  float* peaks;        ///< [heads, rows] largest logit so far
  float* totals;       ///< [heads, rows] sums of weights
  float* keys;         ///< [D, kPrefillKeys]
  float* values;       ///< [kPrefillKeys, width]
  float* weights;      ///< [kPrefillRows, kPrefillKeys]
  float* end;
};

std::int64_t prefill_scratch(const PrefillAttentionArgs& args) {
  return PrefillScratch(args).end - args.scratch;
}

template <typename T>
void pack_queries(const PrefillAttentionArgs& args, const PrefillScratch& scratch) {
  const Vector scale = splat(args.scale);
  for (std::int64_t h = 0; h < args.num_queries; ++h) {
    for (std::int64_t r = 0; r < scratch.rows; ++r) {
      // Rows that only fill the last tile repeat the last one.
      const std::int64_t row = min_of(r, args.rows - 1);
      const T* from =
          static_cast<const T*>(args.queries) + row * args.query_row_stride + h * args.head_dim;
      float* to = scratch.queries + (h * scratch.rows + r) * args.head_dim;
      for (std::int64_t d = 0; d < args.head_dim; d += kLanes) {
        const std::int64_t left = args.head_dim - d;
        store_up_to(to + d, left, mul(load_up_to(from + d, left), scale));
      }
    }
  }
}

/// Keys past the end are 0: their logits are finite until they are masked.
template <typename T>
void pack_keys(const PrefillAttentionArgs& args, std::int64_t first, float* to) {
  for (std::int64_t d = 0; d < args.head_dim; d += kLanes) {
    const std::int64_t dims = min_of(args.head_dim - d, kLanes);
    for (std::int64_t t = 0; t < kPrefillKeys; ++t) {
      float lanes[kLanes];
      store(lanes, zero());
      if (first + t < args.count) {
        const T* key = static_cast<const T*>(args.keys) + (first + t) * args.key_stride + d;
        store(lanes, load_up_to(key, dims));
      }
      for (std::int64_t lane = 0; lane < dims; ++lane) {
        to[(d + lane) * kPrefillKeys + t] = lanes[lane];
      }
    }
  }
}

template <typename T>
void pack_values(const PrefillAttentionArgs& args,
                 std::int64_t first,
                 std::int64_t width,
                 float* to) {
  for (std::int64_t t = 0; t < kPrefillKeys; ++t) {
    const T* value = static_cast<const T*>(args.values) + (first + t) * args.value_stride;
    for (std::int64_t d = 0; d < width; d += kLanes) {
      const bool is_there = first + t < args.count;
      store(to + t * width + d, is_there ? load_up_to(value + d, args.head_dim - d) : zero());
    }
  }
}

/// Logits of one row become weights relative to its largest logit so far; what was summed before is
/// rescaled to that.
HYBRIDGEN_INLINE void prefill_softmax(float* logits,
                                      std::int64_t visible,
                                      std::int64_t width,
                                      float& peak,
                                      float& total,
                                      float* sum) {
  for (std::int64_t t = visible < 0 ? 0 : visible; t < kPrefillKeys; ++t) {
    logits[t] = kMinusInfinity;
  }
  Vector largest = splat(peak);
  for (std::int64_t t = 0; t < kPrefillKeys; t += kLanes) {
    largest = max_of(load(logits + t), largest);
  }
  const float now = max_lane(largest);
  const Vector shift = splat(now == kMinusInfinity ? 0.0F : now);
  Vector added = zero();
  for (std::int64_t t = 0; t < kPrefillKeys; t += kLanes) {
    const Vector weight = exp_of(sub(load(logits + t), shift));
    store(logits + t, weight);
    added = add(added, weight);
  }
  if (now != peak) {
    const float kept = __builtin_expf(peak - now);
    total *= kept;
    for (std::int64_t d = 0; d < width; d += kLanes) {
      store(sum + d, mul(load(sum + d), splat(kept)));
    }
    peak = now;
  }
  total += sum_lanes(added);
}

template <typename T>
void prefill_attention_of(const PrefillAttentionArgs& args) {
  const PrefillScratch scratch(args);
  const std::int64_t all_rows = args.num_queries * scratch.rows;
  pack_queries<T>(args, scratch);
  for (std::int64_t i = 0; i < all_rows * scratch.width; ++i) scratch.sums[i] = 0.0F;
  for (std::int64_t i = 0; i < all_rows; ++i) {
    scratch.peaks[i] = kMinusInfinity;
    scratch.totals[i] = 0.0F;
  }
  const std::int64_t end =
      args.is_causal ? min_of(args.count, args.first_row + args.rows) : args.count;
  for (std::int64_t first = 0; first < end; first += kPrefillKeys) {
    pack_keys<T>(args, first, scratch.keys);
    pack_values<T>(args, first, scratch.width, scratch.values);
    for (std::int64_t tile = 0; tile < all_rows; tile += kPrefillRows) {
      const std::int64_t row = tile % scratch.rows;
      const auto visible_of = [&](std::int64_t r) {
        const std::int64_t keys = min_of(args.count - first, kPrefillKeys);
        const std::int64_t last = min_of(row + r, args.rows - 1);
        return args.is_causal ? min_of(keys, args.first_row + last + 1 - first) : keys;
      };
      if (visible_of(kPrefillRows - 1) <= 0) continue;
      prefill_product<false>(scratch.queries + tile * args.head_dim,
                             args.head_dim,
                             scratch.keys,
                             kPrefillKeys,
                             args.head_dim,
                             scratch.weights);
      float* sums = scratch.sums + tile * scratch.width;
      for (std::int64_t r = 0; r < kPrefillRows; ++r) {
        prefill_softmax(scratch.weights + r * kPrefillKeys,
                        visible_of(r),
                        scratch.width,
                        scratch.peaks[tile + r],
                        scratch.totals[tile + r],
                        sums + r * scratch.width);
      }
      prefill_product<true>(
          scratch.weights, kPrefillKeys, scratch.values, scratch.width, kPrefillKeys, sums);
    }
  }
  for (std::int64_t h = 0; h < args.num_queries; ++h) {
    for (std::int64_t r = 0; r < args.rows; ++r) {
      const std::int64_t at = h * scratch.rows + r;
      const float total = scratch.totals[at];
      const Vector inverse = splat(total == 0.0F ? 0.0F : 1.0F / total);
      float* out = args.out + h * args.out_head_stride + r * args.head_dim;
      for (std::int64_t d = 0; d < args.head_dim; d += kLanes) {
        store_up_to(
            out + d, args.head_dim - d, mul(load(scratch.sums + at * scratch.width + d), inverse));
      }
      args.lse[h * args.lse_head_stride + r] =
          total == 0.0F ? kMinusInfinity : scratch.peaks[at] + __builtin_logf(total);
    }
  }
}

void prefill_attention(const PrefillAttentionArgs& args) {
  with_element_type(args.dtype, [&]<typename T>(const T*) { prefill_attention_of<T>(args); });
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
