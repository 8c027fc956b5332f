// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace hybridgen::kernels {
namespace {

constexpr int kTilesOfUnit = 8;
constexpr std::int64_t kTileRows = 16;   ///< of a tile, at most
constexpr std::int64_t kTileBytes = 64;  ///< of a row, at most

/// Rows of every tile and bytes of each; a tile that is not used has none.
struct TileShapes {
  std::uint8_t rows[kTilesOfUnit] = {};
  std::uint16_t row_bytes[kTilesOfUnit] = {};
};

}  // namespace
}  // namespace hybridgen::kernels
