// SPDX-License-Identifier: Apache-2.0
// A prompt's attention by matrix tiles. Operands lie as the tile unit multiplies them: keys and
// values in panels of 16 columns, of which 16 rows of pairs are one tile.
#pragma once

#include "kernels/amx_unit-inl.h"
#include "kernels/prefill_pairs-inl.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

/// Two tiles of rows by two of columns: every operand that is loaded is multiplied twice.
class TileProducts : public PairOperands<16, 32, 32> {
 public:
  static constexpr int kRows = 32;

  void logits(const BFloat16* queries,
              const BFloat16* keys,
              const PrefillSizes<TileProducts>& sizes,
              std::int64_t columns,
              float* to) {
    for (std::int64_t t = 0; t < columns; t += kColumns) {
      unit_.template zero<kTopLeft>();
      unit_.template zero<kTopRight>();
      unit_.template zero<kBottomLeft>();
      unit_.template zero<kBottomRight>();
      multiply(queries, sizes.depth, keys + t * sizes.depth, sizes.depth, sizes.depth);
      store_sums(to + t, sizes.keys);
    }
  }

  void add_values(const BFloat16* weights,
                  const BFloat16* values,
                  const PrefillSizes<TileProducts>& sizes,
                  std::int64_t depth,
                  std::int64_t count,
                  std::int64_t dims,
                  const float* kept,
                  float* sums) {
    for (int row = 0; row < kRows; ++row) {
      if (kept[row] == 1.0F) continue;
      float* sum = sums + row * sizes.width;
      for (std::int64_t d = 0; d < sizes.width; d += kLanes) {
        store(sum + d, mul(load(sum + d), splat(kept[row])));
      }
    }
    for (std::int64_t d = 0; d < dims; d += kColumns) {
      load_sums(sums + d, sizes.width);
      multiply(weights,
               sizes.keys,
               values + d * packed_rows(count),
               packed_rows(count),
               round_up(depth, kDepth));
      store_sums(sums + d, sizes.width);
    }
  }

 private:
  enum : int {
    kTopLeft,
    kTopRight,
    kBottomLeft,
    kBottomRight,
    kTop,
    kBottom,
    kLeft,
    kRight,
  };
  static constexpr std::int64_t kSumBytes = 4;
  static constexpr std::int64_t kPairBytes = 64;  ///< of a panel's row

  static TileShapes whole_tiles() {
    TileShapes shapes;
    for (int tile = 0; tile < kTilesOfUnit; ++tile) {
      shapes.rows[tile] = kTileRows;
      shapes.row_bytes[tile] = kTileBytes;
    }
    return shapes;
  }

  /// Adds to the four sums: rows a [32, depth], and two panels b of `panel_depth` rows each.
  void multiply(const BFloat16* a,
                std::int64_t a_stride,
                const BFloat16* b,
                std::int64_t panel_depth,
                std::int64_t depth) {
    const std::int64_t a_bytes = a_stride * 2;
    for (std::int64_t k = 0; k < depth; k += kDepth) {
      unit_.template load<kTop>(a + k, a_bytes);
      unit_.template load<kBottom>(a + 16 * a_stride + k, a_bytes);
      unit_.template load<kLeft>(b + k * kPanel, kPairBytes);
      unit_.template load<kRight>(b + (panel_depth + k) * kPanel, kPairBytes);
      unit_.template multiply_add<kTopLeft, kTop, kLeft>();
      unit_.template multiply_add<kTopRight, kTop, kRight>();
      unit_.template multiply_add<kBottomLeft, kBottom, kLeft>();
      unit_.template multiply_add<kBottomRight, kBottom, kRight>();
    }
  }

  void load_sums(const float* from, std::int64_t stride) {
    unit_.template load<kTopLeft>(from, stride * kSumBytes);
    unit_.template load<kTopRight>(from + 16, stride * kSumBytes);
    unit_.template load<kBottomLeft>(from + 16 * stride, stride * kSumBytes);
    unit_.template load<kBottomRight>(from + 16 * stride + 16, stride * kSumBytes);
  }

  void store_sums(float* to, std::int64_t stride) {
    unit_.template store<kTopLeft>(to, stride * kSumBytes);
    unit_.template store<kTopRight>(to + 16, stride * kSumBytes);
    unit_.template store<kBottomLeft>(to + 16 * stride, stride * kSumBytes);
    unit_.template store<kBottomRight>(to + 16 * stride + 16, stride * kSumBytes);
  }

  TileUnit unit_{whole_tiles()};
};

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
