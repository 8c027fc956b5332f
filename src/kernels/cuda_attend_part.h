// SPDX-License-Identifier: Apache-2.0
// Attention of some query heads of a KV head over a part of 256 tokens, by one block: a warp reads
// whole rows, 16 bytes a lane, and each row of keys and values is read once for all query heads of
// the block. For attention_cuda.cu alone.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/cuda_attention.h"
#include "kernels/cuda_math.h"
#include "kernels/cuda_packs.h"

namespace hybridgen::kernels {

inline constexpr int kAttendThreads = 128;
inline constexpr int kAttendWarps = kAttendThreads / kWarp;
inline constexpr int kPart = static_cast<int>(kPartTokens);
/// Elements of a row that a lane holds at most, of any type: 256 over 32 lanes.
inline constexpr int kHeld = static_cast<int>(kMostHeadDim) / kWarp;

/// How a row of D elements is spread over `lanes` lanes of a warp, in chunks of kVector.
template <int kVector>
struct Spread {
  int chunks;  ///< of a row
  int lanes;   ///< a power of two

  __device__ explicit Spread(int head_dim) : chunks(head_dim / kVector), lanes(1) {
    while (lanes < chunks && lanes < kWarp) lanes *= 2;
  }
};

/// Tokens of a part, as a block of query heads sees them.
template <typename T>
struct Tokens {
  int count = 0;
  const T* keys = nullptr;  ///< row t at t * key_stride; null: logits are given
  std::int64_t key_stride = 0;
  const T* values = nullptr;  ///< null: only peaks and sums of the weights are wanted
  std::int64_t value_stride = 0;
  const float* given = nullptr;         ///< of the block's first head; rows given_stride apart
  const std::int32_t* index = nullptr;  ///< rows of keys and values for each head; null: 0 to count
  std::int64_t given_stride = 0;        ///< of `given` and `index`
  float* logits = nullptr;              ///< written unless null
  std::int64_t logits_stride = 0;
};

/// Where a part's results go, of the block's first head.
struct PartPlace {
  float* out;
  float* peaks;
  float* sums;
};

/// What of a row this lane holds, as float32; zeros beyond its end.
template <int kVector, typename T>
__device__ __forceinline__ void load_row(const T* row,
                                         const Spread<kVector>& spread,
                                         int lane,
                                         float (&held)[kHeld]) {
  DEVICE_UNROLL for (int i = 0; i < kHeld / kVector; ++i) {
    const int chunk = lane + i * spread.lanes;
    if (chunk < spread.chunks) {
      float numbers[static_cast<unsigned>(kVector)];
      read_pack(row + chunk * kVector, numbers);
      DEVICE_UNROLL for (int v = 0; v < kVector; ++v) held[i * kVector + v] = numbers[v];
    } else {
      DEVICE_UNROLL for (int v = 0; v < kVector; ++v) held[i * kVector + v] = 0.0F;
    }
  }
}

/// logits[r][t] of the block's heads. `queries` [kHeads][head_dim], scaled.
template <int kVector, int kHeads, typename T>
__device__ void score(const Tokens<T>& tokens,
                      const float* queries,
                      int head_dim,
                      int num_heads,
                      float (*logits)[kPart]) {
  const Spread<kVector> spread(head_dim);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int place = static_cast<int>(threadIdx.x) % kWarp;
  const int lane = place % spread.lanes;
  const int at_a_time = kWarp / spread.lanes;  // tokens of a warp
  float held[kHeld];
  // Heads with choices of their own read a row each.
  const int passes = tokens.index == nullptr ? 1 : num_heads;
  for (int pass = 0; pass < passes; ++pass) {
    for (int first = warp * at_a_time; first < tokens.count; first += kAttendWarps * at_a_time) {
      const int t = first + place / spread.lanes;
      const bool is_there = t < tokens.count;
      std::int64_t row = is_there ? t : 0;
      if (tokens.index != nullptr) row = tokens.index[pass * tokens.given_stride + row];
      load_row<kVector>(tokens.keys + row * tokens.key_stride, spread, lane, held);
      DEVICE_UNROLL for (int r = 0; r < kHeads; ++r) {
        if (r >= num_heads || (tokens.index != nullptr && r != pass)) continue;
        float sum = 0.0F;
        DEVICE_UNROLL for (int i = 0; i < kHeld / kVector; ++i) {
          const int chunk = lane + i * spread.lanes;
          if (chunk >= spread.chunks) continue;
          DEVICE_UNROLL for (int v = 0; v < kVector; ++v) {
            sum = fmaf(queries[r * head_dim + chunk * kVector + v], held[i * kVector + v], sum);
          }
        }
        for (int offset = spread.lanes / 2; offset > 0; offset /= 2) {
          sum += __shfl_xor_sync(kAllLanes, sum, offset);
        }
        if (is_there && lane == 0) logits[r][t] = sum;
      }
    }
  }
}

/// Logits become exp(logit - peak), 0 beyond the last token; peaks and sums are left in the part.
template <int kHeads>
__device__ void exponentiate(int count, int num_heads, float (*logits)[kPart], PartPlace place) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int r = warp; r < num_heads; r += kAttendWarps) {
    float peak = -INFINITY;
    for (int t = lane; t < count; t += kWarp) peak = fmaxf(peak, logits[r][t]);
    peak = combine_warp(peak, Larger{});
    // With every logit at -inf, -inf - 0 keeps the weights at 0 where -inf - -inf would give NaN.
    const float from = peak == -INFINITY ? 0.0F : peak;
    float sum = 0.0F;
    for (int t = lane; t < count; t += kWarp) {
      const float e = expf(logits[r][t] - from);
      logits[r][t] = e;
      sum += e;
    }
    sum = combine_warp(sum, Sum{});
    if (lane == 0) {
      place.peaks[r] = peak;
      place.sums[r] = sum;
    }
  }
}

/// out[r] = sum over t of logits[r][t] * V[t]. `sums` [kAttendWarps][kHeads][head_dim].
template <int kVector, int kHeads, typename T>
__device__ void aggregate(const Tokens<T>& tokens,
                          int head_dim,
                          int num_heads,
                          const float (*weights)[kPart],
                          float* sums,
                          float* out) {
  const Spread<kVector> spread(head_dim);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int place = static_cast<int>(threadIdx.x) % kWarp;
  const int lane = place % spread.lanes;
  const int at_a_time = kWarp / spread.lanes;
  float held[kHeld];
  float own[static_cast<unsigned>(kHeads * kHeld)];
  DEVICE_UNROLL for (int r = 0; r < kHeads; ++r) {
    DEVICE_UNROLL for (int i = 0; i < kHeld; ++i) own[r * kHeld + i] = 0.0F;
  }
  const int passes = tokens.index == nullptr ? 1 : num_heads;
  for (int pass = 0; pass < passes; ++pass) {
    for (int t = warp * at_a_time + place / spread.lanes; t < tokens.count;
         t += kAttendWarps * at_a_time) {
      const std::int64_t row =
          tokens.index == nullptr ? t : tokens.index[pass * tokens.given_stride + t];
      load_row<kVector>(tokens.values + row * tokens.value_stride, spread, lane, held);
      DEVICE_UNROLL for (int r = 0; r < kHeads; ++r) {
        if (r >= num_heads || (tokens.index != nullptr && r != pass)) continue;
        const float weight = weights[r][t];
        DEVICE_UNROLL for (int i = 0; i < kHeld; ++i) own[r * kHeld + i] =
            fmaf(weight, held[i], own[r * kHeld + i]);
      }
    }
  }
  DEVICE_UNROLL for (int r = 0; r < kHeads; ++r) {
    if (r >= num_heads) continue;
    DEVICE_UNROLL for (int i = 0; i < kHeld; ++i) {
      for (int offset = spread.lanes; offset < kWarp; offset *= 2) {
        own[r * kHeld + i] += __shfl_xor_sync(kAllLanes, own[r * kHeld + i], offset);
      }
      const int chunk = lane + i / kVector * spread.lanes;
      if (place < spread.lanes && chunk < spread.chunks) {
        sums[(warp * kHeads + r) * head_dim + chunk * kVector + i % kVector] = own[r * kHeld + i];
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < num_heads * head_dim; i += kAttendThreads) {
    float sum = 0.0F;
    for (int w = 0; w < kAttendWarps; ++w) sum += sums[w * kHeads * head_dim + i];
    out[i] = sum;
  }
}

__host__ __device__ constexpr std::int64_t shared_floats(int heads, std::int64_t head_dim) {
  return heads * ((1 + kAttendWarps) * head_dim + kPart);
}

/// Attention of the block's heads, `num_heads` <= kHeads of them, over a part.
template <int kVector, int kHeads, typename T>
__device__ void attend_part(
    const Tokens<T>& tokens, const T* query, int head_dim, int num_heads, PartPlace place) {
  DEVICE_DYNAMIC_SHARED(float, shared);
  auto* logits = reinterpret_cast<float (*)[kPart]>(shared);
  float* queries = shared + kHeads * kPart;
  float* sums = queries + kHeads * head_dim;
  const int thread = static_cast<int>(threadIdx.x);
  if (tokens.keys != nullptr) {
    const float scale = 1.0F / sqrtf(static_cast<float>(head_dim));
    for (int i = thread; i < num_heads * head_dim; i += kAttendThreads) {
      queries[i] = to_float(query[i]) * scale;
    }
    __syncthreads();
    score<kVector, kHeads>(tokens, queries, head_dim, num_heads, logits);
  } else {
    for (int i = thread; i < num_heads * tokens.count; i += kAttendThreads) {
      const int r = i / tokens.count;
      const int t = i % tokens.count;
      logits[r][t] = tokens.given[r * tokens.given_stride + t];
    }
  }
  __syncthreads();
  if (tokens.logits != nullptr) {
    for (int i = thread; i < num_heads * tokens.count; i += kAttendThreads) {
      const int r = i / tokens.count;
      const int t = i % tokens.count;
      tokens.logits[r * tokens.logits_stride + t] = logits[r][t];
    }
    __syncthreads();
  }
  exponentiate<kHeads>(tokens.count, num_heads, logits, place);
  if (tokens.values == nullptr) return;
  __syncthreads();
  aggregate<kVector, kHeads>(tokens, head_dim, num_heads, logits, sums, place.out);
}

}  // namespace hybridgen::kernels
