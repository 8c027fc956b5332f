// SPDX-License-Identifier: Apache-2.0
// Stands in for the processor's tile unit, by its manual: sums of even and of odd factors apart,
// each in float32 in the order of k, denormal numbers as zero.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "kernels/amx_shapes-inl.h"

namespace hybridgen::kernels {
namespace {

class TileUnit {
 public:
  explicit TileUnit(const TileShapes& shapes) : shapes_(shapes) {
    // A unit that is not given back would be taken from whoever shapes it next.
    if (in_use) std::abort();
    in_use = true;
    for (int tile = 0; tile < kTilesOfUnit; ++tile) {
      if (shapes.rows[tile] > kTileRows || shapes.row_bytes[tile] > kTileBytes) std::abort();
    }
  }
  ~TileUnit() { in_use = false; }
  TileUnit(const TileUnit&) = delete;
  TileUnit& operator=(const TileUnit&) = delete;

  template <int Tile>
  void zero() {
    tiles_[Tile] = {};
  }
  template <int Tile>
  void load(const void* rows, std::int64_t stride) {
    tiles_[Tile] = {};
    for (std::int64_t r = 0; r < shapes_.rows[Tile]; ++r) {
      std::memcpy(
          row(Tile, r), static_cast<const std::byte*>(rows) + r * stride, shapes_.row_bytes[Tile]);
    }
  }
  template <int Tile>
  void store(void* rows, std::int64_t stride) {
    for (std::int64_t r = 0; r < shapes_.rows[Tile]; ++r) {
      std::memcpy(
          static_cast<std::byte*>(rows) + r * stride, row(Tile, r), shapes_.row_bytes[Tile]);
    }
  }
  template <int Sums, int Left, int Right>
  void multiply_add() {
    const int columns = shapes_.row_bytes[Sums] / 4;
    const int pairs = shapes_.row_bytes[Left] / 4;
    // What the processor answers with an exception.
    if (shapes_.rows[Left] != shapes_.rows[Sums] || shapes_.rows[Right] != pairs ||
        shapes_.row_bytes[Right] != shapes_.row_bytes[Sums] || Sums == Left || Sums == Right ||
        Left == Right) {
      std::abort();
    }
    for (std::int64_t m = 0; m < shapes_.rows[Sums]; ++m) {
      const Halves left = halves_of(row(Left, m));
      float even[kColumns] = {};
      float odd[kColumns] = {};
      for (int k = 0; k < pairs; ++k) {
        const Halves right = halves_of(row(Right, k));
        for (int n = 0; n < columns; ++n) {
          even[n] = flushed(std::fma(left.even[k], right.even[n], even[n]));
          odd[n] = flushed(std::fma(left.odd[k], right.odd[n], odd[n]));
        }
      }
      float sums[kColumns];
      std::memcpy(sums, row(Sums, m), sizeof(sums));
      for (int n = 0; n < columns; ++n) {
        sums[n] = flushed(flushed(sums[n]) + flushed(even[n] + odd[n]));
      }
      std::memcpy(row(Sums, m), sums, sizeof(sums));
    }
  }

 private:
  static constexpr int kColumns = kTileBytes / 4;
  struct Halves {
    float even[kColumns];
    float odd[kColumns];
  };

  static float flushed(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    return (bits & 0x7f800000U) == 0 ? std::bit_cast<float>(bits & 0x80000000U) : x;
  }
  static Halves halves_of(const std::byte* row) {
    std::uint32_t pairs[kColumns];
    std::memcpy(pairs, row, sizeof(pairs));
    Halves halves;
    for (int i = 0; i < kColumns; ++i) {
      halves.even[i] = flushed(std::bit_cast<float>(pairs[i] << 16));
      halves.odd[i] = flushed(std::bit_cast<float>(pairs[i] & 0xffff0000U));
    }
    return halves;
  }
  std::byte* row(int tile, std::int64_t r) {
    return tiles_[static_cast<std::size_t>(tile)].data() + r * kTileBytes;
  }

  inline static thread_local bool in_use = false;
  TileShapes shapes_;
  std::array<std::array<std::byte, kTileRows * kTileBytes>, kTilesOfUnit> tiles_{};
};

}  // namespace
}  // namespace hybridgen::kernels
