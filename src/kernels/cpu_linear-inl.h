// SPDX-License-Identifier: Apache-2.0
// Matrix-vector product for few rows. Bound by the weights' way from memory: a tile of weight rows
// is streamed once, in order, while all x rows (which stay in the cache) are multiplied with it.
//
// Whatever the tile, output (r, n) is one vector of sums over k, each in ascending order, whose
// lanes are then added in one order, so neither the other rows of the batch nor the split of
// [begin, end) changes a bit of it.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

/// Weight rows that share the loads of x. For a single x row, too: their sums hide the latency of
/// the multiply-add.
constexpr int kStreamedOutputs = kAccumulators >= 24 ? 4 : 2;
/// x rows that share the loads of those weight rows.
constexpr int kStreamedRows = 6;
static_assert(kStreamedOutputs * kStreamedRows <= kAccumulators);
/// x rows whose outputs are gathered before they are stored, a vector of them at a time.
constexpr std::int64_t kBlockRows = 32;

/// How a vector of x and one of weights are multiplied: kElements of them into kLanes sums.
template <typename T>
struct Products {
  using Operand = Vector;
  static constexpr std::int64_t kElements = kLanes;
  static HYBRIDGEN_INLINE Operand load_all(const T* p) { return load(p); }
  static HYBRIDGEN_INLINE Operand load_first(const T* p, std::int64_t count) {
    return load_some(p, count, 0.0F);
  }
  static HYBRIDGEN_INLINE Vector add_to(Vector sums, Operand x, Operand weight) {
    return fma(x, weight, sums);
  }
  static HYBRIDGEN_INLINE void keep(Operand& v) { keep_in_register(v); }
};

#if defined(HYBRIDGEN_ISA_BF16)
/// Both factors are bfloat16 as they lie in memory; a sum takes two products.
template <>
struct Products<BFloat16> {
  using Operand = __m512i;
  static constexpr std::int64_t kElements = 2 * kLanes;
  static HYBRIDGEN_INLINE Operand load_all(const BFloat16* p) { return _mm512_loadu_si512(p); }
  static HYBRIDGEN_INLINE Operand load_first(const BFloat16* p, std::int64_t count) {
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ULL << count) - 1U), p);
  }
  static HYBRIDGEN_INLINE Vector add_to(Vector sums, Operand x, Operand weight) {
    return _mm512_dpbf16_ps(
        sums, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(weight));
  }
  static HYBRIDGEN_INLINE void keep(Operand& v) { keep_in_register(v); }
};
#endif

/// sums[r * kLanes + o] of weight row o and x row r. The first pass over the weight rows fetches
/// the next tile's ahead as it lies, one row behind the other: memory hands out one stream faster
/// than several.
template <typename T, int Rows, int Outputs>
HYBRIDGEN_INLINE void linear_tile(const T* x,
                                  std::int64_t x_stride,
                                  const T* weight,
                                  std::int64_t in_features,
                                  bool is_first_pass,
                                  float* sums) {
  using P = Products<T>;
  Vector acc[extent(Rows)][extent(Outputs)];
  for (int r = 0; r < Rows; ++r) {
    for (int o = 0; o < Outputs; ++o) acc[r][o] = zero();
  }
  constexpr std::int64_t kStep = 64 / static_cast<std::int64_t>(sizeof(T));  // a line
  static_assert(kStep % P::kElements == 0);
  const std::int64_t tile_bytes = Outputs * in_features * static_cast<std::int64_t>(sizeof(T));
  std::int64_t k = 0;
  for (; k + kStep <= in_features; k += kStep) {
    if (is_first_pass) {
      prefetch_lines<Outputs>(weight + Outputs * (in_features + k), tile_bytes);
    }
#pragma GCC unroll 8
    for (std::int64_t at = k; at < k + kStep; at += P::kElements) {
      typename P::Operand w[extent(Outputs)];
#pragma GCC unroll 8
      for (int o = 0; o < Outputs; ++o) {
        typename P::Operand loaded = P::load_all(weight + o * in_features + at);
        if constexpr (Rows > 1) P::keep(loaded);
        w[o] = loaded;
      }
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const typename P::Operand v = P::load_all(x + r * x_stride + at);
#pragma GCC unroll 8
        for (int o = 0; o < Outputs; ++o) acc[r][o] = P::add_to(acc[r][o], v, w[o]);
      }
    }
  }
  for (; k < in_features; k += P::kElements) {
    const std::int64_t left = in_features - k;
    const auto load_left = [left](const T* p) {
      return left >= P::kElements ? P::load_all(p) : P::load_first(p, left);
    };
    typename P::Operand w[extent(Outputs)];
#pragma GCC unroll 8
    for (int o = 0; o < Outputs; ++o) w[o] = load_left(weight + o * in_features + k);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const typename P::Operand v = load_left(x + r * x_stride + k);
#pragma GCC unroll 8
      for (int o = 0; o < Outputs; ++o) acc[r][o] = P::add_to(acc[r][o], v, w[o]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    if constexpr (Outputs == 4) {
      sum_lanes_of_four(acc[r], sums + r * kLanes);
    } else {
#pragma GCC unroll 8
      for (int o = 0; o < Outputs; ++o) sums[r * kLanes + o] = sum_lanes(acc[r][o]);
    }
  }
}

/// x rows [row, row + rows) against `Outputs` weight rows.
template <typename T, int Outputs>
HYBRIDGEN_INLINE void linear_tiles(
    const LinearArgs& args, std::int64_t row, std::int64_t rows, std::int64_t output, float* sums) {
  const T* weight = static_cast<const T*>(args.weight) + output * args.in_features;
  const std::int64_t passes = (rows + kStreamedRows - 1) / kStreamedRows;
  std::int64_t done = 0;
  for (std::int64_t pass = 0; pass < passes; ++pass) {
    // Passes of about the same size: the smallest sets the pace.
    const std::int64_t count = (rows - done) / (passes - pass);
    with_constant<kStreamedRows>(count, [&](auto size) {
      linear_tile<T, decltype(size)::value, Outputs>(
          static_cast<const T*>(args.x) + (row + done) * args.x_stride,
          args.x_stride,
          weight,
          args.in_features,
          pass == 0,
          sums + done * kLanes);
    });
    done += count;
  }
}

template <typename T>
HYBRIDGEN_INLINE void store_outputs(const LinearArgs& args,
                                    std::int64_t row,
                                    std::int64_t rows,
                                    std::int64_t output,
                                    std::int64_t count,
                                    const float* sums,
                                    std::int64_t sums_stride) {
  Vector bias = zero();
  if (args.bias != nullptr) bias = load_up_to(static_cast<const T*>(args.bias) + output, count);
  for (std::int64_t r = 0; r < rows; ++r) {
    Vector sum = load(sums + r * sums_stride);
    if (args.bias != nullptr) sum = add(sum, bias);
    const std::int64_t at = (row + r) * args.y_stride + output;
    if (args.y_dtype == DType::kFloat32) {
      store_up_to(static_cast<float*>(args.y) + at, count, sum);
    } else {
      store_up_to(static_cast<T*>(args.y) + at, count, sum);
    }
  }
}

template <typename T>
void linear_of(const LinearArgs& args, std::int64_t begin, std::int64_t end) {
  alignas(64) float sums[kBlockRows * kLanes] = {};
  for (std::int64_t output = begin; output < end; output += kLanes) {
    const std::int64_t count = min_of(kLanes, end - output);
    for (std::int64_t row = 0; row < args.rows; row += kBlockRows) {
      const std::int64_t rows = min_of(kBlockRows, args.rows - row);
      std::int64_t o = 0;
      const auto tiles = [&]<int Outputs>(Constant<Outputs>) {
        for (; o + Outputs <= count; o += Outputs) {
          linear_tiles<T, Outputs>(args, row, rows, output + o, sums + o);
        }
      };
      tiles(Constant<kStreamedOutputs>{});
      tiles(Constant<1>{});
      store_outputs<T>(args, row, rows, output, count, sums, kLanes);
    }
  }
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
