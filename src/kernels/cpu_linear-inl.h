// SPDX-License-Identifier: Apache-2.0
// Matrix-vector product for few rows. Bound by the weights' way from memory: each weight row is
// streamed once, in order, while all x rows (which stay in the cache) are multiplied with it.
//
// Whatever the tile, output (r, n) is the sum of kChains vector sums over k, each in ascending
// order, so neither the other rows of the batch nor the split of [begin, end) changes a bit of it.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

/// Independent sums per output: they hide the latency of the multiply-add.
constexpr int kChains = 2;
/// Weight rows that share the loads of x where there are more than two rows of it.
constexpr int kTileOutputs = kAccumulators >= 24 ? 4 : 2;
constexpr int kTileRows = 3;
constexpr std::int64_t kLinearPrefetchBytes = 2048;

template <typename T, int Rows, int Outputs>
HYBRIDGEN_INLINE void linear_tile(
    const T* x, std::int64_t x_stride, const T* weight, std::int64_t in_features, float* sums) {
  Vector acc[extent(Outputs)][extent(Rows)][kChains];
  for (int o = 0; o < Outputs; ++o) {
    for (int r = 0; r < Rows; ++r) {
      for (int c = 0; c < kChains; ++c) acc[o][r][c] = zero();
    }
  }
  constexpr std::int64_t kStep = kLanes * kChains;
  constexpr std::int64_t kStepBytes = kStep * static_cast<std::int64_t>(sizeof(T));
  constexpr std::int64_t kAhead = kLinearPrefetchBytes / static_cast<std::int64_t>(sizeof(T));
  std::int64_t k = 0;
  for (; k + kStep <= in_features; k += kStep) {
    // Near the end of these rows the next ones to be read are those of the next tile.
    const std::int64_t ahead =
        k + kAhead < in_features ? k + kAhead : k + kAhead + (Outputs - 1) * in_features;
#pragma GCC unroll 8
    for (int o = 0; o < Outputs; ++o) {
      const char* address = reinterpret_cast<const char*>(weight + o * in_features + ahead);
#pragma GCC unroll 8
      for (std::int64_t line = 0; line < kStepBytes; line += 64) prefetch(address + line);
    }
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) {
      const std::int64_t at = k + c * kLanes;
      Vector w[extent(Outputs)];
#pragma GCC unroll 8
      for (int o = 0; o < Outputs; ++o) {
        w[o] = load(weight + o * in_features + at);
        if constexpr (Rows > 1) keep_in_register(w[o]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const Vector v = load(x + r * x_stride + at);
#pragma GCC unroll 8
        for (int o = 0; o < Outputs; ++o) acc[o][r][c] = fma(v, w[o], acc[o][r][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < kChains; ++c) {
    const std::int64_t at = k + c * kLanes;
    const std::int64_t left = in_features - at;
    if (left <= 0) break;
#pragma GCC unroll 8
    for (int o = 0; o < Outputs; ++o) {
      const Vector w = load_up_to(weight + o * in_features + at, left);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        acc[o][r][c] = fma(load_up_to(x + r * x_stride + at, left), w, acc[o][r][c]);
      }
    }
  }
  for (int o = 0; o < Outputs; ++o) {
    for (int r = 0; r < Rows; ++r) {
      sums[o * Rows + r] = sum_lanes(add(acc[o][r][0], acc[o][r][1]));
    }
  }
}

template <typename T>
HYBRIDGEN_INLINE void store_output(const LinearArgs& args,
                                   std::int64_t row,
                                   std::int64_t output,
                                   float sum) {
  if (args.bias != nullptr) sum += load_one(static_cast<const T*>(args.bias) + output);
  const std::int64_t at = row * args.y_stride + output;
  if (args.y_dtype == DType::kFloat32) {
    store_one(static_cast<float*>(args.y) + at, sum);
  } else {
    store_one(static_cast<T*>(args.y) + at, sum);
  }
}

template <typename T, int Rows, int Outputs>
HYBRIDGEN_INLINE void linear_rows(const LinearArgs& args, std::int64_t row, std::int64_t output) {
  const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
  const T* weight = static_cast<const T*>(args.weight) + output * args.in_features;
  float sums[extent(Outputs * Rows)];
  linear_tile<T, Rows, Outputs>(x, args.x_stride, weight, args.in_features, sums);
  for (int o = 0; o < Outputs; ++o) {
    for (int r = 0; r < Rows; ++r) store_output<T>(args, row + r, output + o, sums[o * Rows + r]);
  }
}

/// All x rows against `Outputs` weight rows, which the first pass brings into the cache.
template <typename T, int Outputs>
void linear_outputs(const LinearArgs& args, std::int64_t output) {
  std::int64_t row = 0;
  // Four rows are better cut 2 + 2 than 3 + 1.
  for (; args.rows - row >= kTileRows && args.rows - row != 4; row += kTileRows) {
    linear_rows<T, kTileRows, Outputs>(args, row, output);
  }
  for (; args.rows - row >= 2; row += 2) linear_rows<T, 2, Outputs>(args, row, output);
  if (row < args.rows) linear_rows<T, 1, Outputs>(args, row, output);
}

template <typename T>
void linear_of(const LinearArgs& args, std::int64_t begin, std::int64_t end) {
  std::int64_t output = begin;
  // Few rows leave time to spare, and one or two streams come from memory faster than four.
  if (args.rows > 2) {
    for (; output + kTileOutputs <= end; output += kTileOutputs) {
      linear_outputs<T, kTileOutputs>(args, output);
    }
  }
  if (args.rows > 1) {
    for (; output + 2 <= end; output += 2) linear_outputs<T, 2>(args, output);
  }
  for (; output < end; ++output) linear_outputs<T, 1>(args, output);
}

void linear(const LinearArgs& args, std::int64_t begin, std::int64_t end) {
  with_element_type(args.dtype, [&]<typename T>(const T*) { linear_of<T>(args, begin, end); });
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
