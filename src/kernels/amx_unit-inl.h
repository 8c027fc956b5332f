// SPDX-License-Identifier: Apache-2.0
// The processor's tile unit. Tests include a stand-in with the same members in its place.
#pragma once

#include "kernels/amx_shapes-inl.h"

namespace hybridgen::kernels {
namespace {

/// Owns the thread's tiles for as long as it lives. In assembly because GCC's intrinsics take a
/// tile's number as text only, and do not say which memory they read.
class TileUnit {
 public:
  explicit TileUnit(const TileShapes& shapes) {
    struct alignas(64) {
      std::uint8_t palette = 1;
      std::uint8_t start_row = 0;
      std::uint8_t reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } configuration;
    static_assert(sizeof(configuration) == 64);
    for (int tile = 0; tile < kTilesOfUnit; ++tile) {
      configuration.row_bytes[tile] = shapes.row_bytes[tile];
      configuration.rows[tile] = shapes.rows[tile];
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(configuration));
  }
  ~TileUnit() { __asm__ volatile("tilerelease"); }
  TileUnit(const TileUnit&) = delete;
  TileUnit& operator=(const TileUnit&) = delete;

  template <int Tile>
  void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(Tile));
  }
  /// Rows lie `stride` bytes apart.
  template <int Tile>
  void load(const void* rows, std::int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                     :
                     : "r"(rows), "r"(stride), "i"(Tile)
                     : "memory");
  }
  template <int Tile>
  void store(void* rows, std::int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                     :
                     : "r"(rows), "r"(stride), "i"(Tile)
                     : "memory");
  }
  /// Sums[m, n] += Left[m, 2 k] * Right[k, 2 n] + Left[m, 2 k + 1] * Right[k, 2 n + 1], over k:
  /// sums in float32, factors in bfloat16.
  template <int Sums, int Left, int Right>
  void multiply_add() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(Left), "i"(Right));
  }
};

}  // namespace
}  // namespace hybridgen::kernels
