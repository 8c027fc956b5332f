// SPDX-License-Identifier: Apache-2.0
// Two passes over a prompt's keys: attention with a running softmax, and sums of softmax weights by
// column. Both walk the keys in blocks that stay in the second-level cache, and in a block tiles of
// rows, which are those of all query heads of the group, one prompt row after the other. How
// operands are packed and multiplied is the business of `Products`:
//
//   Element         of queries, keys and values
//   Operand         packed queries, keys, values and weights
//   kRows           of a tile
//   kPanel          columns of a packed panel, a multiple of kLanes
//   kColumns        logits are computed for multiples of so many keys, for which keys and values
//                   past the last one are packed as 0
//   kDepth          packed rows are multiples of so many elements
//   kScalesQueries  whether packed queries hold the scale; else the logits get it
//   kRoundsWeights  whether weights are stored in fewer bits; then outputs are divided by the sum
//   of
//                   the stored ones, and the log-sum-exp is that of the others
//   pack_query(from, dims, scale, to)
//   pack_keys(from, stride, count, dims, to)    for the first product
//   pack_values(from, stride, count, dims, to)  for the second
//   logits(queries, keys, sizes, columns, to)   to [kRows, columns], row stride sizes.keys
//   add_values(weights, values, sizes, depth, count, dims, kept, sums)
//                   sums [kRows, dims] = kept[row] sums + weights [kRows, depth] values, of `count`
//                   packed rows of values
//   weight_of(logit)                            2^logit
//   store_weight(to, weight)                    one vector; returns it as it is stored
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

constexpr float kBitsPerNat = 1.44269504F;
constexpr float kNatsPerBit = 0.69314718F;
/// Weights are relative to a peak, which follows the largest logit of a row only where that is
/// ahead by so much (as a power of two): what is summed up already is seldom scaled anew.
constexpr float kPeakLead = 8.0F;

HYBRIDGEN_INLINE std::int64_t round_up(std::int64_t value, std::int64_t step) {
  return (value + step - 1) / step * step;
}

/// Keys of a block, whose keys and values then take at most 256 KiB. A function of the head alone:
/// a row's sums have one order.
HYBRIDGEN_INLINE std::int64_t prefill_keys(std::int64_t head_dim) {
  return head_dim <= 128 ? 256 : 128;
}

/// Sizes of a call.
template <typename Products>
struct PrefillSizes {
  explicit PrefillSizes(const PrefillAttentionArgs& args)
      : keys(prefill_keys(args.head_dim)),
        depth(round_up(args.head_dim, Products::kDepth)),
        width(round_up(
            args.head_dim,
            Products::kPanel > Products::kColumns ? Products::kPanel : Products::kColumns)),
        rows(round_up(args.rows * args.num_queries, Products::kRows)) {}

  std::int64_t keys;   ///< of a block
  std::int64_t depth;  ///< of a packed query
  std::int64_t width;  ///< of a row of sums
  std::int64_t rows;   ///< of all heads, in whole tiles
};

constexpr std::int64_t kCacheLine = 64;

/// Hands out scratch in whole cache lines.
class ScratchCursor {
 public:
  explicit ScratchCursor(float* scratch)
      : at_(round_up(reinterpret_cast<std::intptr_t>(scratch), kCacheLine)) {}
  template <typename T>
  T* take(std::int64_t count) {
    const std::intptr_t taken = at_;
    at_ += round_up(count * static_cast<std::int64_t>(sizeof(T)), kCacheLine);
    return reinterpret_cast<T*>(taken);  // NOLINT(performance-no-int-to-ptr): of scratch
  }
  std::intptr_t at() const { return at_; }

 private:
  std::intptr_t at_;
};

template <typename Products>
struct PrefillScratch {
  using Operand = typename Products::Operand;
  PrefillScratch(const PrefillSizes<Products>& sizes, float* scratch)
      : PrefillScratch(sizes, ScratchCursor(scratch)) {}
  PrefillScratch(const PrefillSizes<Products>& sizes, ScratchCursor cursor)
      : queries(cursor.take<Operand>(sizes.rows * sizes.depth)),
        sums(cursor.take<float>(sizes.rows * sizes.width)),
        peaks(cursor.take<float>(sizes.rows)),
        totals(cursor.take<float>(sizes.rows)),
        stored_totals(Products::kRoundsWeights ? cursor.take<float>(sizes.rows) : totals),
        keys(cursor.take<Operand>(sizes.keys * sizes.depth)),
        values(cursor.take<Operand>(sizes.keys * sizes.width)),
        logits(cursor.take<float>(Products::kRows * sizes.keys)),
        weights(cursor.take<Operand>(Products::kRows * sizes.keys)),
        end(cursor.at()) {}

  Operand* queries;      ///< [rows, depth]: row by row those of all heads
  float* sums;           ///< [rows, width] of weighted values
  float* peaks;          ///< [rows] logits that weights are relative to
  float* totals;         ///< [rows] sums of weights
  float* stored_totals;  ///< [rows] the same of weights as they are stored
  Operand* keys;         ///< of a block
  Operand* values;       ///< of a block
  float* logits;         ///< [kRows, keys] of a tile
  Operand* weights;      ///< [kRows, keys] of a tile
  std::intptr_t end;
};

/// Rows first .. first + count of all heads'.
template <typename Products>
void pack_queries(const PrefillAttentionArgs& args,
                  const PrefillSizes<Products>& sizes,
                  std::int64_t first,
                  std::int64_t count,
                  typename Products::Operand* to) {
  using T = typename Products::Element;
  const float scale = Products::kScalesQueries ? args.scale * kBitsPerNat : 1.0F;
  for (std::int64_t i = 0; i < count; ++i) {
    // Rows that only fill the last tile repeat the last one.
    const std::int64_t row = min_of(first + i, args.rows * args.num_queries - 1);
    const T* from = static_cast<const T*>(args.queries) +
                    row / args.num_queries * args.query_row_stride +
                    row % args.num_queries * args.head_dim;
    Products::pack_query(from, args.head_dim, scale, to + i * sizes.depth);
  }
}

/// What the rows of a tile see of a block of keys.
template <typename Products>
struct TileView {
  TileView(const PrefillAttentionArgs& args, std::int64_t tile, std::int64_t first) {
    const std::int64_t last = args.rows - 1;
    const std::int64_t block = min_of(args.count - first, prefill_keys(args.head_dim));
    std::int64_t row = tile / args.num_queries;
    std::int64_t head = tile % args.num_queries;
    for (int i = 0; i < Products::kRows; ++i) {
      visible[i] =
          args.is_causal ? min_of(block, args.first_row + min_of(row, last) + 1 - first) : block;
      if (++head == args.num_queries) {
        head = 0;
        ++row;
      }
    }
    most = visible[Products::kRows - 1];
    columns = round_up(most, Products::kColumns);
  }
  std::int64_t visible[extent(Products::kRows)];  ///< ascending; may be below 0
  std::int64_t most;
  std::int64_t columns;  ///< to be computed
};

/// c [Rows, Vectors * kLanes] = a b, plus c times `kept` where that is given. a [Rows, steps] and b
/// [steps, panel] count 32-bit elements, which multiply_add(one of a, vector of b, sum) knows.
template <int Rows, int Vectors, typename MultiplyAdd>
HYBRIDGEN_INLINE void multiply_tile(const void* a,
                                    std::int64_t a_stride,
                                    const void* b,
                                    std::int64_t panel,
                                    std::int64_t steps,
                                    const float* kept,
                                    float* c,
                                    std::int64_t c_stride,
                                    MultiplyAdd multiply_add) {
  const auto* left = static_cast<const float*>(a);
  const auto* right = static_cast<const float*>(b);
  Vector acc[extent(Rows)][extent(Vectors)];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      const float* sum = c + r * c_stride + v * kLanes;
      acc[r][v] = kept != nullptr ? mul(load(sum), splat(kept[r])) : zero();
    }
  }
  for (std::int64_t k = 0; k < steps; ++k) {
    Vector wide[extent(Vectors)];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) wide[v] = load(right + k * panel + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vector one = splat(read_as<float>(left + r * a_stride + k));
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) acc[r][v] = multiply_add(one, wide[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) store(c + r * c_stride + v * kLanes, acc[r][v]);
  }
}

/// Hidden logits of a row become -infinity.
HYBRIDGEN_INLINE void hide(float* logits, std::int64_t visible, std::int64_t columns) {
  for (std::int64_t t = visible < 0 ? 0 : visible; t < columns; ++t) {
    logits[t] = -__builtin_inff();
  }
}

HYBRIDGEN_INLINE float largest_of(const float* logits, std::int64_t columns) {
  Vector largest = splat(-__builtin_inff());
  for (std::int64_t t = 0; t < columns; t += kLanes) {
    largest = max_of(load(logits + t), largest);
  }
  return max_lane(largest);
}

/// Logits of a tile's rows become weights. What row `tile` + i has summed so far is to be
/// multiplied by kept[i].
template <typename Products>
HYBRIDGEN_INLINE void tile_softmax(const PrefillScratch<Products>& scratch,
                                   const TileView<Products>& view,
                                   std::int64_t tile,
                                   std::int64_t stride,
                                   float scale,
                                   float* kept) {
  float* peaks = scratch.peaks + tile;
  for (int i = 0; i < Products::kRows; ++i) {
    float* logits = scratch.logits + i * stride;
    if (view.visible[i] < view.columns) hide(logits, view.visible[i], view.columns);
    const float largest = largest_of(logits, view.columns);
    kept[i] = 1.0F;
    if ((largest - peaks[i]) * scale > kPeakLead) {
      kept[i] = __builtin_exp2f((peaks[i] - largest) * scale);
      peaks[i] = largest;
    }
    const Vector peak = splat(peaks[i] == -__builtin_inff() ? 0.0F : peaks[i]);
    const Vector factor = splat(scale);
    auto* weights = scratch.weights + i * stride;
    Vector total = zero();
    Vector stored_total = zero();
    for (std::int64_t t = 0; t < view.columns; t += kLanes) {
      // Not one multiply-add: the peak's own weight is 1 however large it is.
      Vector behind = sub(load(logits + t), peak);
      if constexpr (!Products::kScalesQueries) behind = mul(behind, factor);
      const Vector weight = Products::weight_of(behind);
      const Vector stored = Products::store_weight(weights + t, weight);
      total = add(total, weight);
      if constexpr (Products::kRoundsWeights) stored_total = add(stored_total, stored);
    }
    const auto add_up = [&](float* totals, Vector lanes) {
      totals[tile + i] = totals[tile + i] * kept[i] + sum_lanes(lanes);
    };
    add_up(scratch.totals, total);
    if constexpr (Products::kRoundsWeights) add_up(scratch.stored_totals, stored_total);
  }
}

template <typename Products>
void write_outputs(const PrefillAttentionArgs& args,
                   const PrefillSizes<Products>& sizes,
                   const PrefillScratch<Products>& scratch,
                   float scale) {
  for (std::int64_t i = 0; i < args.rows * args.num_queries; ++i) {
    const std::int64_t row = i / args.num_queries;
    const std::int64_t head = i % args.num_queries;
    const float total = scratch.totals[i];
    const float divisor = scratch.stored_totals[i];
    const Vector inverse = splat(divisor == 0.0F ? 0.0F : 1.0F / divisor);
    float* out = args.out + head * args.out_head_stride + row * args.head_dim;
    for (std::int64_t d = 0; d < args.head_dim; d += kLanes) {
      store_up_to(
          out + d, args.head_dim - d, mul(load(scratch.sums + i * sizes.width + d), inverse));
    }
    args.lse[head * args.lse_head_stride + row] =
        total == 0.0F ? -__builtin_inff()
                      : scratch.peaks[i] * (scale * kNatsPerBit) + __builtin_logf(total);
  }
}

template <typename Products>
void prefill_pass(const PrefillAttentionArgs& args) {
  using T = typename Products::Element;
  const PrefillSizes<Products> sizes(args);
  const PrefillScratch<Products> scratch(sizes, args.scratch);
  const float scale = Products::kScalesQueries ? 1.0F : args.scale * kBitsPerNat;
  pack_queries(args, sizes, 0, sizes.rows, scratch.queries);
  for (std::int64_t i = 0; i < sizes.rows * sizes.width; ++i) scratch.sums[i] = 0.0F;
  for (std::int64_t i = 0; i < sizes.rows; ++i) {
    scratch.peaks[i] = -__builtin_inff();
    scratch.totals[i] = 0.0F;
    scratch.stored_totals[i] = 0.0F;
  }
  const std::int64_t end =
      args.is_causal ? min_of(args.count, args.first_row + args.rows) : args.count;
  Products products;
  for (std::int64_t first = 0; first < end; first += sizes.keys) {
    const std::int64_t count = min_of(end - first, sizes.keys);
    Products::pack_keys(static_cast<const T*>(args.keys) + first * args.key_stride,
                        args.key_stride,
                        count,
                        args.head_dim,
                        scratch.keys);
    Products::pack_values(static_cast<const T*>(args.values) + first * args.value_stride,
                          args.value_stride,
                          count,
                          args.head_dim,
                          scratch.values);
    for (std::int64_t tile = 0; tile < sizes.rows; tile += Products::kRows) {
      const TileView<Products> view(args, tile, first);
      if (view.most <= 0) continue;
      products.logits(
          scratch.queries + tile * sizes.depth, scratch.keys, sizes, view.columns, scratch.logits);
      float kept[extent(Products::kRows)];
      tile_softmax(scratch, view, tile, sizes.keys, scale, kept);
      products.add_values(scratch.weights,
                          scratch.values,
                          sizes,
                          view.most,
                          count,
                          args.head_dim,
                          kept,
                          scratch.sums + tile * sizes.width);
    }
  }
  write_outputs(args, sizes, scratch, scale);
}

// ---- Column sums -------------------------------------------------------------------------------

template <typename Products>
struct ColumnScratch {
  using Operand = typename Products::Operand;
  ColumnScratch(const PrefillSizes<Products>& sizes, std::int64_t num_queries, float* scratch)
      : ColumnScratch(sizes, num_queries, ScratchCursor(scratch)) {}
  ColumnScratch(const PrefillSizes<Products>& sizes, std::int64_t num_queries, ScratchCursor cursor)
      : queries(cursor.take<Operand>(Products::kRows * sizes.depth)),
        keys(cursor.take<Operand>(sizes.keys * sizes.depth)),
        logits(cursor.take<float>(Products::kRows * sizes.keys)),
        sums(cursor.take<float>(num_queries * sizes.keys)),
        end(cursor.at()) {}

  Operand* queries;  ///< [kRows, depth] of a tile
  Operand* keys;     ///< of a block
  float* logits;     ///< [kRows, keys] of a tile
  float* sums;       ///< [query heads, keys] of a block
  std::intptr_t end;
};

/// sums[t] += exp(logits[t] - lse) over the first `columns` keys.
template <typename Products>
HYBRIDGEN_INLINE void add_weights(
    const float* logits, std::int64_t columns, float scale, float lse, float* sums) {
  const Vector shift = splat(lse == -__builtin_inff() ? 0.0F : -lse * kBitsPerNat);
  const Vector factor = splat(scale);
  for (std::int64_t t = 0; t < columns; t += kLanes) {
    store(sums + t, add(load(sums + t), Products::weight_of(fma(load(logits + t), factor, shift))));
  }
}

template <typename Products>
void column_pass(const PrefillAttentionArgs& args) {
  using T = typename Products::Element;
  const PrefillSizes<Products> sizes(args);
  const ColumnScratch<Products> scratch(sizes, args.num_queries, args.scratch);
  const float scale = Products::kScalesQueries ? 1.0F : args.scale * kBitsPerNat;
  const std::int64_t all_rows = args.rows * args.num_queries;
  Products products;
  for (std::int64_t first = 0; first < args.count; first += sizes.keys) {
    const std::int64_t count = min_of(args.count - first, sizes.keys);
    Products::pack_keys(static_cast<const T*>(args.keys) + first * args.key_stride,
                        args.key_stride,
                        count,
                        args.head_dim,
                        scratch.keys);
    for (std::int64_t i = 0; i < args.num_queries * sizes.keys; ++i) scratch.sums[i] = 0.0F;
    for (std::int64_t tile = 0; tile < all_rows; tile += Products::kRows) {
      const TileView<Products> view(args, tile, first);
      if (view.most <= 0) continue;
      pack_queries(args, sizes, tile, Products::kRows, scratch.queries);
      products.logits(scratch.queries, scratch.keys, sizes, view.columns, scratch.logits);
      for (std::int64_t i = 0; i < min_of(Products::kRows, all_rows - tile); ++i) {
        float* logits = scratch.logits + i * sizes.keys;
        if (view.visible[i] < view.columns) hide(logits, view.visible[i], view.columns);
        const std::int64_t row = (tile + i) / args.num_queries;
        const std::int64_t head = (tile + i) % args.num_queries;
        add_weights<Products>(logits,
                              view.columns,
                              scale,
                              args.lse[head * args.lse_head_stride + row],
                              scratch.sums + head * sizes.keys);
      }
    }
    for (std::int64_t head = 0; head < args.num_queries; ++head) {
      for (std::int64_t t = 0; t < count; ++t) {
        args.out[head * args.out_head_stride + first + t] = scratch.sums[head * sizes.keys + t];
      }
    }
  }
}

/// Scratch of the pass that the arguments are for: column sums have keys and no values. Attention's
/// grows with the rows, which column sums take all at once.
template <typename Products>
std::int64_t scratch_of(const PrefillAttentionArgs& args) {
  const PrefillSizes<Products> sizes(args);
  const bool is_columns = args.count > 0 && args.values == nullptr;
  const std::intptr_t end = is_columns
                                ? ColumnScratch<Products>(sizes, args.num_queries, nullptr).end
                                : PrefillScratch<Products>(sizes, nullptr).end;
  return (end + kCacheLine) / static_cast<std::int64_t>(sizeof(float));
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
