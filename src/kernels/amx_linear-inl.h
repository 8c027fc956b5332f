// SPDX-License-Identifier: Apache-2.0
// The linear layer of some rows by matrix tiles, for bfloat16. One factor is 16 weight rows as they
// lie in the checkpoint, the other 16 rows of x as pairs of inputs, so that their product is 16
// outputs of 16 rows: no weight is copied but those of a ragged end. `Tiles` is the processor's
// tile unit or a stand-in with the same operations.
//
// Output (r, n) is one sum over steps of 32 inputs, in ascending order: neither the other rows nor
// the split of the outputs changes a bit of it.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/cpu_linear-inl.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kTileSide = 16;    ///< weight rows, or x rows, of a tile
constexpr std::int64_t kTileInputs = 32;  ///< of one multiplication
constexpr std::int64_t kStripOutputs = 2 * kTileSide;
constexpr std::int64_t kStripRows = 2 * kTileSide;
/// Of a weight row: a strip reads as many rows side by side as no hardware prefetch follows.
constexpr std::int64_t kTilePrefetchBytes = 512;

/// Tiles of the unit: sums of a strip's two times 16 outputs (top, bottom) and two times 16 x rows
/// (left, right), and their factors.
enum LinearTile : int {
  kTopLeftSums,
  kTopRightSums,
  kBottomLeftSums,
  kBottomRightSums,
  kTopWeights,
  kBottomWeights,
  kLeftRows,
  kRightRows,
  kNumLinearTiles,
};

HYBRIDGEN_INLINE std::int64_t tile_steps(std::int64_t in_features) {
  return (in_features + kTileInputs - 1) / kTileInputs;
}

/// Bytes of x as pairs.
HYBRIDGEN_INLINE std::int64_t paired_rows_bytes(std::int64_t rows, std::int64_t in_features) {
  const std::int64_t blocks = (rows + kTileSide - 1) / kTileSide;
  return blocks * tile_steps(in_features) * kTileSide * kTileInputs * 2;
}

/// Rows [16 block, 16 block + 16) of x to paired [blocks, steps, 16 pairs of inputs, 16 rows, 2];
/// 0 beyond the last row and input. Pairs move as the float32 numbers that their bits are.
inline void pair_rows(const LinearArgs& args, std::int64_t block, BFloat16* paired) {
  const std::int64_t steps = tile_steps(args.in_features);
  const auto* x = static_cast<const BFloat16*>(args.x);
  for (std::int64_t step = 0; step < steps; ++step) {
    BFloat16* tile = paired + (block * steps + step) * kTileSide * kTileInputs;
    const std::int64_t k = step * kTileInputs;
    const std::int64_t inputs = min_of(kTileInputs, args.in_features - k);
    alignas(64) BFloat16 rows[kTileSide][kTileInputs] = {};
    for (std::int64_t r = 0; r < kTileSide; ++r) {
      const std::int64_t row = block * kTileSide + r;
      if (row >= args.rows) break;
      __builtin_memcpy(rows[r], x + row * args.x_stride + k, static_cast<std::size_t>(inputs) * 2);
    }
    for (std::int64_t r = 0; r < kTileSide; r += kLanes) {
      for (std::int64_t pair = 0; pair < kTileSide; pair += kLanes) {
        Vector pairs[kLanes];
        for (std::int64_t i = 0; i < kLanes; ++i) {
          pairs[i] = read_as<Vector>(&rows[r + i][2 * pair]);
        }
        transpose(pairs);
        for (std::int64_t i = 0; i < kLanes; ++i) {
          write_as<Vector>(tile + ((pair + i) * kTileSide + r) * 2, pairs[i]);
        }
      }
    }
  }
}

/// 16 weight rows from `output` on and 32 inputs from `k` on into a tile; what lies beyond the
/// weight is 0.
template <int Tile, typename Tiles>
HYBRIDGEN_INLINE void load_weights(
    Tiles& tiles, const LinearArgs& args, std::int64_t output, std::int64_t end, std::int64_t k) {
  const std::int64_t in_features = args.in_features;
  const auto* weight = static_cast<const BFloat16*>(args.weight) + output * in_features + k;
  const std::int64_t outputs = min_of(kTileSide, end - output);
  const std::int64_t inputs = min_of(kTileInputs, in_features - k);
  if (outputs == kTileSide && inputs == kTileInputs) {
    // Into the second-level cache: so many lines ahead would fill the first.
    for (std::int64_t o = 0; o < kTileSide; ++o) {
      __builtin_prefetch(weight + o * in_features + kTilePrefetchBytes / 2, 0, 2);
    }
    tiles.template load<Tile>(weight, in_features * 2);
    return;
  }
  alignas(64) BFloat16 whole[kTileSide][kTileInputs] = {};
  for (std::int64_t o = 0; o < outputs; ++o) {
    __builtin_memcpy(whole[o], weight + o * in_features, static_cast<std::size_t>(inputs) * 2);
  }
  tiles.template load<Tile>(whole, kTileInputs * 2);
}

/// y of 16 outputs from `output` on and rows from `row` on, of sums [16 outputs, kStripRows].
inline void store_tile(const LinearArgs& args,
                       std::int64_t row,
                       std::int64_t output,
                       std::int64_t end,
                       const float* sums) {
  const std::int64_t rows = min_of(kTileSide, args.rows - row);
  for (std::int64_t o = 0; o < kTileSide && output + o < end; o += kLanes) {
    for (std::int64_t r = 0; r < rows; r += kLanes) {
      Vector lanes[kLanes];
      for (std::int64_t i = 0; i < kLanes; ++i) lanes[i] = load(sums + (o + i) * kStripRows + r);
      transpose(lanes);
      alignas(64) float turned[kLanes * kLanes];
      for (std::int64_t i = 0; i < kLanes; ++i) store(turned + i * kLanes, lanes[i]);
      store_outputs<BFloat16>(args,
                              row + r,
                              min_of(kLanes, rows - r),
                              output + o,
                              min_of(kLanes, end - output - o),
                              turned,
                              kLanes);
    }
  }
}

/// 32 outputs from `output` on, and rows [row, row + 32).
template <bool HasBottom, bool HasRight, typename Tiles>
inline void tile_strip(Tiles& tiles,
                       const LinearArgs& args,
                       const BFloat16* paired,
                       std::int64_t row,
                       std::int64_t output,
                       std::int64_t end) {
  const std::int64_t steps = tile_steps(args.in_features);
  constexpr std::int64_t kTileElements = kTileSide * kTileInputs;
  const BFloat16* left = paired + row / kTileSide * steps * kTileElements;
  tiles.template zero<kTopLeftSums>();
  if constexpr (HasRight) tiles.template zero<kTopRightSums>();
  if constexpr (HasBottom) tiles.template zero<kBottomLeftSums>();
  if constexpr (HasBottom && HasRight) tiles.template zero<kBottomRightSums>();
  for (std::int64_t step = 0; step < steps; ++step) {
    const std::int64_t k = step * kTileInputs;
    tiles.template load<kLeftRows>(left + step * kTileElements, kTileInputs * 2);
    load_weights<kTopWeights>(tiles, args, output, end, k);
    tiles.template multiply_add<kTopLeftSums, kTopWeights, kLeftRows>();
    if constexpr (HasBottom) {
      load_weights<kBottomWeights>(tiles, args, output + kTileSide, end, k);
      tiles.template multiply_add<kBottomLeftSums, kBottomWeights, kLeftRows>();
    }
    if constexpr (HasRight) {
      tiles.template load<kRightRows>(left + (steps + step) * kTileElements, kTileInputs * 2);
      tiles.template multiply_add<kTopRightSums, kTopWeights, kRightRows>();
      if constexpr (HasBottom) {
        tiles.template multiply_add<kBottomRightSums, kBottomWeights, kRightRows>();
      }
    }
  }
  alignas(64) float sums[kStripOutputs][kStripRows];
  constexpr std::int64_t kSumBytes = kStripRows * 4;
  tiles.template store<kTopLeftSums>(&sums[0][0], kSumBytes);
  if constexpr (HasRight) tiles.template store<kTopRightSums>(&sums[0][kTileSide], kSumBytes);
  if constexpr (HasBottom) tiles.template store<kBottomLeftSums>(&sums[kTileSide][0], kSumBytes);
  if constexpr (HasBottom && HasRight) {
    tiles.template store<kBottomRightSums>(&sums[kTileSide][kTileSide], kSumBytes);
  }
  for (std::int64_t bottom = 0; bottom <= (HasBottom ? kTileSide : 0); bottom += kTileSide) {
    for (std::int64_t right = 0; right <= (HasRight ? kTileSide : 0); right += kTileSide) {
      store_tile(args, row + right, output + bottom, end, &sums[bottom][right]);
    }
  }
}

/// Outputs [begin, end) of all rows; `paired` is what pair_rows wrote of them.
template <typename Tiles>
inline void tile_linear(Tiles& tiles,
                        const LinearArgs& args,
                        const BFloat16* paired,
                        std::int64_t begin,
                        std::int64_t end) {
  for (std::int64_t output = begin; output < end; output += kStripOutputs) {
    const bool has_bottom = output + kTileSide < end;
    for (std::int64_t row = 0; row < args.rows; row += kStripRows) {
      const bool has_right = row + kTileSide < args.rows;
      if (has_bottom && has_right) {
        tile_strip<true, true>(tiles, args, paired, row, output, end);
      } else if (has_bottom) {
        tile_strip<true, false>(tiles, args, paired, row, output, end);
      } else if (has_right) {
        tile_strip<false, true>(tiles, args, paired, row, output, end);
      } else {
        tile_strip<false, false>(tiles, args, paired, row, output, end);
      }
    }
  }
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
