// SPDX-License-Identifier: Apache-2.0
// The tile arithmetic over a stand-in for the tile unit, on any CPU. The unit itself is tested with
// all other instruction sets, where the CPU has it.
#include "kernels/amx_tiles-inl.h"

#include <algorithm>
#include <cstring>

#include "logits_test_support.h"
#include "support/isa_emulator/include/kernels/amx_unit-inl.h"

namespace hybridgen::kernels::test {
namespace {

TEST(AmxTiles, GiveTheDotProductsOfOneBlock) {
  constexpr std::int64_t kStride = 40;
  constexpr float kScale = 1.25F;
  constexpr std::uint16_t kNaN = 0x7fc0;
  for (const std::int64_t head_dim : {2, 30, 32, 64, 80, 96, 128, 256}) {
    const Keys keys = random_keys(DType::kBFloat16, 32, head_dim);
    // What follows the block must not matter.
    std::vector<std::uint16_t> block(static_cast<std::size_t>((head_dim + 32) * 32), kNaN);
    std::memcpy(block.data(), keys.blocked.data(), static_cast<std::size_t>(head_dim * 32 * 2));
    const std::int64_t padded = (head_dim + 31) / 32 * 32;
    for (std::int64_t num_queries = 1; num_queries <= kTileRows; ++num_queries) {
      Array packed(DType::kBFloat16, num_queries * padded);
      std::vector<float> queries = random_floats(num_queries * head_dim, 24);
      for (std::int64_t q = 0; q < num_queries; ++q) {
        for (std::int64_t d = 0; d < head_dim; ++d) {
          float& number = queries[static_cast<std::size_t>(q * head_dim + d)];
          packed.set(q * padded + d, number);
          number = packed.at(q * padded + d) * kScale;
        }
      }
      TileShapes shapes;
      for (int tile = 0; tile < kNumTiles; ++tile) {
        const bool of_keys = tile == kFirstKeys || tile == kSecondKeys;
        shapes.rows[tile] = static_cast<std::uint8_t>(of_keys ? kTileRows : num_queries);
        shapes.row_bytes[tile] = kTileBytes;
      }
      TileUnit tiles(shapes);
      std::vector<float> logits((kTileRows + 1) * kStride, kInfinity);
      tile_logits(tiles,
                  packed.data(),
                  padded * 2,
                  num_queries,
                  block.data(),
                  block.data(),
                  head_dim,
                  kScale,
                  logits.data(),
                  kStride);
      std::vector<float> written;
      for (std::int64_t q = 0; q <= kTileRows; ++q) {
        const auto row = logits.begin() + q * kStride;
        const auto end = q < num_queries ? row + 32 : row;
        written.insert(written.end(), row, end);
        EXPECT_TRUE(std::all_of(end, row + kStride, [](float x) { return x == kInfinity; })) << q;
      }
      expect_dot_products(written, keys, queries, num_queries, {0, 32});
    }
  }
}

}  // namespace
}  // namespace hybridgen::kernels::test
