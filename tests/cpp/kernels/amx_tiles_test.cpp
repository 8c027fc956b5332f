// SPDX-License-Identifier: Apache-2.0
// The tile arithmetic over a stand-in for the tile unit, on any CPU. The unit itself is tested with
// all other instruction sets, where the CPU has it.
#include "kernels/amx_tiles-inl.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "logits_test_support.h"

namespace hybridgen::kernels::test {
namespace {

/// What the processor's manual says of the five operations, rounding aside (none here: float64).
class EmulatedTiles {
 public:
  explicit EmulatedTiles(std::int64_t num_queries) {
    rows_.fill(kTileRows);
    for (const int tile : {kFirstSums, kSecondSums, kQueryTile}) {
      rows_[static_cast<std::size_t>(tile)] = num_queries;
    }
  }

  template <int Tile>
  void zero() {
    tiles_[Tile] = {};
  }
  template <int Tile>
  void load(const void* rows, std::int64_t stride) {
    for (std::int64_t r = 0; r < rows_[Tile]; ++r) {
      std::memcpy(row(Tile, r), static_cast<const std::byte*>(rows) + r * stride, kTileBytes);
    }
  }
  template <int Tile>
  void store(void* rows, std::int64_t stride) {
    for (std::int64_t r = 0; r < rows_[Tile]; ++r) {
      std::memcpy(static_cast<std::byte*>(rows) + r * stride, row(Tile, r), kTileBytes);
    }
  }
  template <int Sums, int Left, int Right>
  void multiply_add() {
    for (std::int64_t m = 0; m < rows_[Sums]; ++m) {
      for (std::int64_t n = 0; n < kTileBytes / 4; ++n) {
        double sum = number<float>(Sums, m, n);
        for (std::int64_t k = 0; k < rows_[Right]; ++k) {
          for (const std::int64_t part : {0, 1}) {
            sum += bfloat16(Left, m, 2 * k + part) * bfloat16(Right, k, 2 * n + part);
          }
        }
        const auto rounded = static_cast<float>(sum);
        std::memcpy(row(Sums, m) + n * 4, &rounded, 4);
      }
    }
  }

 private:
  std::byte* row(int tile, std::int64_t r) {
    return tiles_[static_cast<std::size_t>(tile)].data() + r * kTileBytes;
  }
  template <typename T>
  T number(int tile, std::int64_t r, std::int64_t column) {
    T value;
    std::memcpy(&value, row(tile, r) + column * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
    return value;
  }
  double bfloat16(int tile, std::int64_t r, std::int64_t column) {
    return decode(DType::kBFloat16, number<std::uint16_t>(tile, r, column));
  }

  std::array<std::array<std::byte, kTileRows * kTileBytes>, kNumTiles> tiles_{};
  std::array<std::int64_t, kNumTiles> rows_{};
};

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
      EmulatedTiles tiles(num_queries);
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
