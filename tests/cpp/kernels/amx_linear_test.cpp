// SPDX-License-Identifier: Apache-2.0
// The tile form of the linear layer over a stand-in for the tile unit, on any CPU.
#define HYBRIDGEN_ISA_NAMESPACE tile_stand_in
#define HYBRIDGEN_ISA_LEVEL 0
#include "kernels/amx_linear-inl.h"

#include "kernel_test_support.h"
#include "support/isa_emulator/include/kernels/amx_unit-inl.h"

namespace hybridgen::kernels::test {
namespace {

using tile_stand_in::pair_rows;
using tile_stand_in::paired_rows_bytes;
using tile_stand_in::tile_linear;
using PairedRows = std::vector<tile_stand_in::BFloat16>;

TileShapes whole_tiles() {
  TileShapes shapes;
  for (int tile = 0; tile < kTilesOfUnit; ++tile) {
    shapes.rows[tile] = kTileRows;
    shapes.row_bytes[tile] = kTileBytes;
  }
  return shapes;
}

/// y [rows, out] in `y_dtype` by the tiles, outputs [0, cut) and [cut, out) by themselves.
Array by_tiles(const Array& x,
               const Array& weight,
               const Array* bias,
               std::int64_t rows,
               std::int64_t in,
               std::int64_t out,
               std::int64_t cut,
               DType y_dtype) {
  Array y(y_dtype, rows * out);
  LinearArgs args{.dtype = DType::kBFloat16,
                  .y_dtype = y_dtype,
                  .x = x.data(),
                  .weight = weight.data(),
                  .bias = bias == nullptr ? nullptr : bias->data(),
                  .y = y.data(),
                  .rows = rows,
                  .in_features = in,
                  .x_stride = in,
                  .y_stride = out};
  PairedRows paired(static_cast<std::size_t>(paired_rows_bytes(rows, in) / 2));
  for (std::int64_t block = 0; block * 16 < rows; ++block) pair_rows(args, block, paired.data());
  TileUnit tiles(whole_tiles());
  tile_linear(tiles, args, paired.data(), 0, cut);
  tile_linear(tiles, args, paired.data(), cut, out);
  return y;
}

TEST(AmxLinear, MatchesFloat64ForEveryRaggedEnd) {
  for (const std::int64_t rows : {1, 4, 15, 16, 17, 32, 33, 64}) {
    for (const std::int64_t in : {1, 2, 31, 32, 33, 100}) {
      for (const std::int64_t out : {1, 15, 16, 17, 32, 50}) {
        const Array x = random_array(DType::kBFloat16, rows * in, 1);
        const Array weight = random_array(DType::kBFloat16, out * in, 2);
        const Array bias = random_array(DType::kBFloat16, out, 3);
        for (const DType y_dtype : {DType::kBFloat16, DType::kFloat32}) {
          const Array y = by_tiles(x, weight, &bias, rows, in, out, 0, y_dtype);
          for (std::int64_t i = 0; i < rows * out; ++i) {
            const std::int64_t r = i / out;
            const std::int64_t n = i % out;
            double expected = bias.at(n);
            double size = std::abs(expected);
            for (std::int64_t k = 0; k < in; ++k) {
              const double term = static_cast<double>(x.at(r * in + k)) *
                                  static_cast<double>(weight.at(n * in + k));
              expected += term;
              size += std::abs(term);
            }
            ASSERT_NEAR(y.at(i),
                        expected,
                        size * sum_error(in + 1) +
                            1.01 * std::abs(expected) * unit_roundoff(y_dtype) + 1e-37)
                << rows << " rows, in " << in << ", row " << r << ", output " << n << " of " << out;
          }
        }
      }
    }
  }
}

TEST(AmxLinear, NeitherTheOtherRowsNorTheSplitOfTheOutputsChangeABit) {
  constexpr std::int64_t kIn = 70;
  constexpr std::int64_t kOut = 50;
  constexpr std::int64_t kMostRows = 40;
  const Array x = random_array(DType::kBFloat16, kMostRows * kIn, 4);
  const Array weight = random_array(DType::kBFloat16, kOut * kIn, 5);
  const Array all = by_tiles(x, weight, nullptr, kMostRows, kIn, kOut, kOut, DType::kFloat32);
  for (std::int64_t rows = 1; rows <= kMostRows; ++rows) {
    const std::int64_t cut = rows * 5 % kOut;
    const Array some = by_tiles(x, weight, nullptr, rows, kIn, kOut, cut, DType::kFloat32);
    for (std::int64_t i = 0; i < rows * kOut; ++i) {
      ASSERT_EQ(some.at(i), all.at(i)) << rows << " rows, cut at " << cut << ", element " << i;
    }
  }
}

TEST(AmxLinear, ReadsAndWritesNothingOutsideItsRowsAndOutputs) {
  constexpr std::int64_t kRows = 5;
  constexpr std::int64_t kIn = 40;
  constexpr std::int64_t kOut = 19;
  const Array x = random_array(DType::kBFloat16, kRows * kIn, 6);
  const Array weight = random_array(DType::kBFloat16, kOut * kIn, 7);
  const Array dense = by_tiles(x, weight, nullptr, kRows, kIn, kOut, kOut, DType::kBFloat16);
  Array spread(DType::kBFloat16, kRows * (kIn + 3));
  for (std::int64_t i = 0; i < kRows * (kIn + 3); ++i) {
    spread.set(i, i % (kIn + 3) < kIn ? x.at(i / (kIn + 3) * kIn + i % (kIn + 3)) : kInfinity);
  }
  Array y(DType::kBFloat16, kRows * (kOut + 2));
  for (std::int64_t i = 0; i < y.count(); ++i) y.set(i, 77.0F);
  const LinearArgs args{.dtype = DType::kBFloat16,
                        .y_dtype = DType::kBFloat16,
                        .x = spread.data(),
                        .weight = weight.data(),
                        .y = y.data(),
                        .rows = kRows,
                        .in_features = kIn,
                        .x_stride = kIn + 3,
                        .y_stride = kOut + 2};
  PairedRows paired(static_cast<std::size_t>(paired_rows_bytes(kRows, kIn) / 2));
  pair_rows(args, 0, paired.data());
  TileUnit tiles(whole_tiles());
  tile_linear(tiles, args, paired.data(), 0, kOut);
  for (std::int64_t i = 0; i < y.count(); ++i) {
    const std::int64_t n = i % (kOut + 2);
    EXPECT_EQ(y.at(i), n < kOut ? dense.at(i / (kOut + 2) * kOut + n) : 77.0F) << i;
  }
}

}  // namespace
}  // namespace hybridgen::kernels::test
