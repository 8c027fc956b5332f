// SPDX-License-Identifier: Apache-2.0
// Compiled with the flags of cpu_avx512_bf16.cpp, -mamx-tile and -mamx-bf16.
#if defined(__x86_64__)
#define HYBRIDGEN_ISA_NAMESPACE amx
#define HYBRIDGEN_ISA_LEVEL 2
#include "kernels/amx_linear-inl.h"
#include "kernels/amx_prefill-inl.h"
#include "kernels/amx_tiles-inl.h"
#include "kernels/amx_unit-inl.h"
#include "kernels/bf16_logits-inl.h"

namespace hybridgen::kernels::amx {
namespace {

static_assert(kGroupQueries <= kTileRows);
static_assert(kMostPackedDim % kTileDims == 0);
static_assert(kKeyBlockTokens == kTileBlock);

TileShapes shapes_of(std::int64_t num_queries) {
  TileShapes shapes;
  for (const int tile : {kFirstSums, kSecondSums, kQueryTile, kFirstKeys, kSecondKeys}) {
    const bool of_keys = tile == kFirstKeys || tile == kSecondKeys;
    shapes.row_bytes[tile] = kTileBytes;
    shapes.rows[tile] = static_cast<std::uint8_t>(of_keys ? kTileRows : num_queries);
  }
  return shapes;
}

class TileBlocks {
 public:
  TileBlocks(const PackedQueries& queries, std::int64_t num_queries, std::int64_t head_dim)
      : queries_(queries),
        num_queries_(num_queries),
        head_dim_(head_dim),
        unit_(shapes_of(num_queries)) {}

  template <Prefetch To>
  void logits(const BFloat16* block, const BFloat16* next, float* out, std::int64_t stride) const {
    tile_logits<To>(unit_,
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

std::int64_t prefill_scratch(const PrefillAttentionArgs& args) {
  return has_pairs(args) ? scratch_of<TileProducts>(args) : avx512::kTable.prefill_scratch(args);
}

void prefill_attention(const PrefillAttentionArgs& args) {
  if (!has_pairs(args)) return avx512::kTable.prefill_attention(args);
  prefill_pass<TileProducts>(args);
}

void column_sums(const PrefillAttentionArgs& args) {
  if (!has_pairs(args)) return avx512::kTable.column_sums(args);
  column_pass<TileProducts>(args);
}

std::int64_t prepared_rows_bytes(const LinearArgs& args) {
  return args.dtype == DType::kBFloat16 ? paired_rows_bytes(args.rows, args.in_features)
                                        : avx512::kTable.prepared_linear.rows_bytes(args);
}

void prepare_rows(const LinearArgs& args, std::int64_t block, void* prepared) {
  if (args.dtype != DType::kBFloat16) {
    return avx512::kTable.prepared_linear.prepare_rows(args, block, prepared);
  }
  pair_rows(args, block, static_cast<BFloat16*>(prepared));
}

std::int64_t prepared_linear_outputs(const LinearArgs& args) {
  return args.dtype == DType::kBFloat16 ? kStripOutputs
                                        : avx512::kTable.prepared_linear.outputs(args);
}

std::int64_t prepared_linear_scratch(const LinearArgs& args) {
  return args.dtype == DType::kBFloat16 ? 0 : avx512::kTable.prepared_linear.scratch_bytes(args);
}

void prepared_linear(const LinearArgs& args,
                     const void* prepared,
                     std::int64_t begin,
                     std::int64_t end,
                     void* scratch) {
  if (args.dtype != DType::kBFloat16) {
    return avx512::kTable.prepared_linear.multiply(args, prepared, begin, end, scratch);
  }
  TileShapes whole;
  for (int tile = 0; tile < kTilesOfUnit; ++tile) {
    whole.rows[tile] = kTileRows;
    whole.row_bytes[tile] = kTileBytes;
  }
  TileUnit unit(whole);
  tile_linear(unit, args, static_cast<const BFloat16*>(prepared), begin, end);
}

}  // namespace hybridgen::kernels::amx
#endif
