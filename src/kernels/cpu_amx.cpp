// SPDX-License-Identifier: Apache-2.0
// Compiled with the flags of cpu_avx512_bf16.cpp, -mamx-tile and -mamx-bf16.
#if defined(__x86_64__)
#define HYBRIDGEN_ISA_NAMESPACE amx
#define HYBRIDGEN_ISA_LEVEL 2
#include "kernels/amx_tiles-inl.h"
#include "kernels/bf16_logits-inl.h"

namespace hybridgen::kernels::amx {
namespace {

static_assert(kGroupQueries <= kTileRows);
static_assert(kMostPackedDim % kTileDims == 0);
static_assert(kKeyBlockTokens == kTileBlock);

/// The tile unit, shaped for `num_queries` rows for as long as this lives. In assembly because
/// GCC's intrinsics take a tile's number as text only, and do not say which memory they read.
class TileUnit {
 public:
  explicit TileUnit(std::int64_t num_queries) {
    struct alignas(64) {
      std::uint8_t palette = 1;
      std::uint8_t start_row = 0;
      std::uint8_t reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } shape;
    static_assert(sizeof(shape) == 64);
    for (const int tile : {kFirstSums, kSecondSums, kQueryTile, kFirstKeys, kSecondKeys}) {
      const bool of_keys = tile == kFirstKeys || tile == kSecondKeys;
      shape.row_bytes[tile] = kTileBytes;
      shape.rows[tile] = static_cast<std::uint8_t>(of_keys ? kTileRows : num_queries);
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(shape));
  }
  ~TileUnit() { __asm__ volatile("tilerelease"); }
  TileUnit(const TileUnit&) = delete;
  TileUnit& operator=(const TileUnit&) = delete;

  template <int Tile>
  void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(Tile));
  }
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
  template <int Sums, int Left, int Right>
  void multiply_add() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(Left), "i"(Right));
  }
};

class TileBlocks {
 public:
  TileBlocks(const PackedQueries& queries, std::int64_t num_queries, std::int64_t head_dim)
      : queries_(queries), num_queries_(num_queries), head_dim_(head_dim), unit_(num_queries) {}

  void logits(const BFloat16* block, const BFloat16* next, float* out, std::int64_t stride) const {
    tile_logits(unit_,
                queries_.values,
                sizeof(queries_.values[0]),
                num_queries_,
                &block->bits,
                &next->bits,
                head_dim_,
                queries_.scale,
                out,
                stride);
  }

 private:
  const PackedQueries& queries_;
  std::int64_t num_queries_;
  std::int64_t head_dim_;
  mutable TileUnit unit_;
};

}  // namespace

void blocked_logits(const BlockedLogitsArgs& args) {
  logits_by_pairs<TileBlocks>(args, avx512::kTable.blocked_logits);
}

void chosen_logits(const ChosenLogitsArgs& args) {
  logits_by_pairs<TileBlocks>(args, avx512::kTable.chosen_logits);
}

}  // namespace hybridgen::kernels::amx
#endif
