// SPDX-License-Identifier: Apache-2.0
// The linear layer for many rows, bound by arithmetic. A panel of weight rows is widened to float32
// and transposed once; then one load of it serves all x rows of a register tile, and sums need no
// folding. Where a processor multiplies 16-bit numbers itself, libraries do (docs/kernels.md).
//
// Output (r, n) is one sum over k, in ascending order: neither the other rows nor the split of
// [begin, end) changes a bit of it.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/cpu_linear-inl.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

constexpr int kPanelVectors = 2;
constexpr std::int64_t kPanelOutputs = kPanelVectors * kLanes;
/// x rows that share the loads of a panel.
constexpr int kPanelTileRows = kAccumulators / kPanelVectors;
/// Of panels that a pass over x reads: they stay in the second-level cache.
constexpr std::int64_t kPanelsBytes = std::int64_t{128} << 10;

HYBRIDGEN_INLINE std::int64_t panels_at_a_time(std::int64_t in_features) {
  const std::int64_t bytes = kPanelOutputs * in_features * std::int64_t{sizeof(float)};
  return bytes == 0 || bytes >= kPanelsBytes ? 1 : kPanelsBytes / bytes;
}

/// x in float32, where it is not: rows of in_features numbers.
std::int64_t wide_rows_bytes(const LinearArgs& args) {
  return args.dtype == DType::kFloat32
             ? 0
             : args.rows * args.in_features * static_cast<std::int64_t>(sizeof(float));
}

void widen_rows(const LinearArgs& args, std::int64_t block, void* wide) {
  with_element_type(args.dtype, [&]<typename T>(const T*) {
    const std::int64_t first = block * kPreparedRows;
    for (std::int64_t r = first; r < min_of(first + kPreparedRows, args.rows); ++r) {
      const T* x = static_cast<const T*>(args.x) + r * args.x_stride;
      float* to = static_cast<float*>(wide) + r * args.in_features;
      for (std::int64_t k = 0; k < args.in_features; k += kLanes) {
        const std::int64_t left = args.in_features - k;
        store_up_to(to + k, left, load_up_to(x + k, left));
      }
    }
  });
}

std::int64_t packed_linear_outputs(const LinearArgs& args) {
  return panels_at_a_time(args.in_features) * kPanelOutputs;
}

std::int64_t packed_linear_scratch(const LinearArgs& args) {
  return packed_linear_outputs(args) * args.in_features * static_cast<std::int64_t>(sizeof(float));
}

/// panel [in, kPanelOutputs] of `count` weight rows; what is beyond them is 0.
template <typename T>
HYBRIDGEN_INLINE void pack_panel(const T* weight,
                                 std::int64_t in_features,
                                 std::int64_t count,
                                 float* panel) {
  for (std::int64_t first = 0; first < kPanelOutputs; first += kLanes) {
    for (std::int64_t k = 0; k < in_features; k += kLanes) {
      const std::int64_t left = in_features - k;
      Vector rows[kLanes];
      if (first + kLanes <= count && left >= kLanes) {
#pragma GCC unroll 16
        for (std::int64_t i = 0; i < kLanes; ++i) {
          rows[i] = load(weight + (first + i) * in_features + k);
        }
      } else {
        for (std::int64_t i = 0; i < kLanes; ++i) {
          rows[i] =
              first + i < count ? load_up_to(weight + (first + i) * in_features + k, left) : zero();
        }
      }
      transpose(rows);
      float* to = panel + k * kPanelOutputs + first;
      if (left >= kLanes) {
#pragma GCC unroll 16
        for (std::int64_t i = 0; i < kLanes; ++i) store(to + i * kPanelOutputs, rows[i]);
      } else {
        for (std::int64_t i = 0; i < left; ++i) store(to + i * kPanelOutputs, rows[i]);
      }
    }
  }
}

/// sums [Rows, kPanelOutputs] = x [Rows, in] times the panel.
template <int Rows>
HYBRIDGEN_INLINE void panel_tile(const float* x,
                                 std::int64_t x_stride,
                                 const float* panel,
                                 std::int64_t in_features,
                                 float* sums) {
  Vector acc[extent(Rows)][extent(kPanelVectors)];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) acc[r][v] = zero();
  }
#pragma GCC unroll 4
  for (std::int64_t k = 0; k < in_features; ++k) {
    Vector w[extent(kPanelVectors)];
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) w[v] = load(panel + k * kPanelOutputs + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const Vector one = splat(x[r * x_stride + k]);
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVectors; ++v) acc[r][v] = fma(one, w[v], acc[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) store(sums + r * kPanelOutputs + v * kLanes, acc[r][v]);
  }
}

template <typename T>
void packed_linear_of(const LinearArgs& args,
                      const void* wide,
                      std::int64_t begin,
                      std::int64_t end,
                      float* scratch) {
  const std::int64_t in_features = args.in_features;
  const bool is_wide = args.dtype == DType::kFloat32;
  const auto* x = static_cast<const float*>(is_wide ? args.x : wide);
  const std::int64_t x_stride = is_wide ? args.x_stride : in_features;
  const std::int64_t most = panels_at_a_time(in_features) * kPanelOutputs;
  const std::int64_t passes = (args.rows + kPanelTileRows - 1) / kPanelTileRows;
  alignas(64) float sums[extent(kPanelTileRows * kPanelOutputs)];
  for (std::int64_t first = begin; first < end; first += most) {
    const std::int64_t outputs = min_of(most, end - first);
    for (std::int64_t n = 0; n < outputs; n += kPanelOutputs) {
      pack_panel(static_cast<const T*>(args.weight) + (first + n) * in_features,
                 in_features,
                 min_of(kPanelOutputs, outputs - n),
                 scratch + n * in_features);
    }
    std::int64_t row = 0;
    for (std::int64_t pass = 0; pass < passes; ++pass) {
      // Passes of about the same size, as in linear_tiles.
      const std::int64_t rows = (args.rows - row) / (passes - pass);
      for (std::int64_t n = 0; n < outputs; n += kPanelOutputs) {
        with_constant<kPanelTileRows>(rows, [&](auto size) {
          panel_tile<decltype(size)::value>(
              x + row * x_stride, x_stride, scratch + n * in_features, in_features, sums);
        });
        for (std::int64_t v = 0; v < kPanelOutputs && n + v < outputs; v += kLanes) {
          store_outputs<T>(args,
                           row,
                           rows,
                           first + n + v,
                           min_of(kLanes, outputs - n - v),
                           sums + v,
                           kPanelOutputs);
        }
      }
      row += rows;
    }
  }
}

void packed_linear(
    const LinearArgs& args, const void* wide, std::int64_t begin, std::int64_t end, void* scratch) {
  with_element_type(args.dtype, [&]<typename T>(const T*) {
    packed_linear_of<T>(args, wide, begin, end, static_cast<float*>(scratch));
  });
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
