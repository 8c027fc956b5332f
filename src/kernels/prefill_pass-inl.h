// SPDX-License-Identifier: Apache-2.0
// One pass over a prompt's keys: attention with a running softmax. It walks the keys in blocks that
// stay in the second-level cache, and in a block tiles of rows, which are those of all query heads
// of the group, one prompt row after the other. How operands are packed and multiplied is the
// business of `Products`:
//
//   Element         of queries, keys and values
//   Operand         packed queries, keys, values and weights
//   kRows           of a tile
//   kPanel          columns of a packed panel, a multiple of kLanes
//   kDepth          packed rows are multiples of so many elements
//   kScalesQueries  whether packed queries hold the scale; else the logits get it
//   pack_query(from, dims, scale, to)
//   pack_keys(from, stride, count, dims, to)    for the first product
//   pack_values(from, stride, count, dims, to)  for the second
//   logits(queries, keys, sizes, columns, to)   to [kRows, columns], row stride sizes.keys
//   add_values(weights, values, sizes, depth, count, dims, kept, sums)
//                   sums [kRows, dims] = kept[row] sums + weights [kRows, depth] values, of `count`
//                   packed rows of values
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
        width(round_up(args.head_dim, Products::kPanel)),
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
    return reinterpret_cast<T*>(taken);
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
        keys(cursor.take<Operand>(sizes.keys * sizes.depth)),
        values(cursor.take<Operand>(sizes.keys * sizes.width)),
        logits(cursor.take<float>(Products::kRows * sizes.keys)),
        weights(cursor.take<Operand>(Products::kRows * sizes.keys)),
        end(cursor.at()) {}

  Operand* queries;  ///< [rows, depth]: row by row those of all heads
  float* sums;       ///< [rows, width] of weighted values
  float* peaks;      ///< [rows] what weights are relative to, as a power of two
  float* totals;     ///< [rows] sums of weights
  Operand* keys;     ///< of a block
  Operand* values;   ///< of a block
  float* logits;     ///< [kRows, keys] of a tile
  Operand* weights;  ///< [kRows, keys] of a tile
  std::intptr_t end;
};

template <typename Products>
std::int64_t scratch_of(const PrefillAttentionArgs& args) {
  const PrefillScratch<Products> from_zero(PrefillSizes<Products>(args), nullptr);
  return (from_zero.end + kCacheLine) / static_cast<std::int64_t>(sizeof(float));
}

template <typename Products>
void pack_queries(const PrefillAttentionArgs& args,
                  const PrefillSizes<Products>& sizes,
                  typename Products::Operand* to) {
  using T = typename Products::Element;
  const float scale = Products::kScalesQueries ? args.scale * kBitsPerNat : 1.0F;
  for (std::int64_t i = 0; i < sizes.rows; ++i) {
    // Rows that only fill the last tile repeat the last one.
    const std::int64_t row = min_of(i, args.rows * args.num_queries - 1);
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
    for (int i = 0; i < Products::kRows; ++i) {
      const std::int64_t row = min_of((tile + i) / args.num_queries, args.rows - 1);
      const std::int64_t keys =
          args.is_causal ? min_of(args.count, args.first_row + row + 1) : args.count;
      visible[i] = min_of(keys - first, prefill_keys(args.head_dim));
    }
    most = visible[Products::kRows - 1];
    least = visible[0];
  }
  std::int64_t visible[extent(Products::kRows)];  ///< ascending; may be below 0
  std::int64_t most;
  std::int64_t least;
};

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

/// Logits of a tile become weights; `kept` says what is left of what each row has summed so far.
template <typename Products>
HYBRIDGEN_INLINE void tile_softmax(const PrefillScratch<Products>& scratch,
                                   const TileView<Products>& view,
                                   std::int64_t columns,
                                   std::int64_t stride,
                                   float scale,
                                   float* peaks,
                                   float* totals,
                                   float* kept) {
  for (int i = 0; i < Products::kRows; ++i) {
    float* logits = scratch.logits + i * stride;
    if (view.visible[i] < columns) hide(logits, view.visible[i], columns);
    const float largest = largest_of(logits, columns) * scale;
    kept[i] = 1.0F;
    if (largest > peaks[i] + kPeakLead) {
      kept[i] = __builtin_exp2f(peaks[i] - largest);
      peaks[i] = largest;
    }
    const Vector shift = splat(peaks[i] == -__builtin_inff() ? 0.0F : -peaks[i]);
    const Vector factor = splat(scale);
    Vector total = zero();
    for (std::int64_t t = 0; t < columns; t += kLanes) {
      const Vector weight = exp2_of(fma(load(logits + t), factor, shift));
      total = add(total, Products::store_weight(scratch.weights + i * stride + t, weight));
    }
    totals[i] = totals[i] * kept[i] + sum_lanes(total);
  }
}

template <typename Products>
void write_outputs(const PrefillAttentionArgs& args,
                   const PrefillSizes<Products>& sizes,
                   const PrefillScratch<Products>& scratch) {
  for (std::int64_t i = 0; i < args.rows * args.num_queries; ++i) {
    const std::int64_t row = i / args.num_queries;
    const std::int64_t head = i % args.num_queries;
    const float total = scratch.totals[i];
    const Vector inverse = splat(total == 0.0F ? 0.0F : 1.0F / total);
    float* out = args.out + head * args.out_head_stride + row * args.head_dim;
    for (std::int64_t d = 0; d < args.head_dim; d += kLanes) {
      store_up_to(
          out + d, args.head_dim - d, mul(load(scratch.sums + i * sizes.width + d), inverse));
    }
    args.lse[head * args.lse_head_stride + row] =
        total == 0.0F ? -__builtin_inff() : scratch.peaks[i] * kNatsPerBit + __builtin_logf(total);
  }
}

template <typename Products>
void prefill_pass(const PrefillAttentionArgs& args) {
  using T = typename Products::Element;
  const PrefillSizes<Products> sizes(args);
  const PrefillScratch<Products> scratch(sizes, args.scratch);
  const float scale = Products::kScalesQueries ? 1.0F : args.scale * kBitsPerNat;
  pack_queries(args, sizes, scratch.queries);
  for (std::int64_t i = 0; i < sizes.rows * sizes.width; ++i) scratch.sums[i] = 0.0F;
  for (std::int64_t i = 0; i < sizes.rows; ++i) {
    scratch.peaks[i] = -__builtin_inff();
    scratch.totals[i] = 0.0F;
  }
  const std::int64_t end =
      args.is_causal ? min_of(args.count, args.first_row + args.rows) : args.count;
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
      const std::int64_t columns = round_up(view.most, kLanes);
      Products::logits(
          scratch.queries + tile * sizes.depth, scratch.keys, sizes, columns, scratch.logits);
      float kept[extent(Products::kRows)];
      tile_softmax(scratch,
                   view,
                   columns,
                   sizes.keys,
                   scale,
                   scratch.peaks + tile,
                   scratch.totals + tile,
                   kept);
      Products::add_values(scratch.weights,
                           scratch.values,
                           sizes,
                           view.most,
                           count,
                           args.head_dim,
                           kept,
                           scratch.sums + tile * sizes.width);
    }
  }
  write_outputs(args, sizes, scratch);
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
