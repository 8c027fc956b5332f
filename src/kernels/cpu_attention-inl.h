// SPDX-License-Identifier: Apache-2.0
// Attention of one KV head: logits over row-major keys, and the softmax-weighted sum of values.
// Each logit and each output is one chain of multiply-adds in a fixed order, so it does not depend
// on the split of tokens or on how many queries share the pass.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

// The hardware's prefetcher alone loses a fifth of the bandwidth once several queries share a load.
constexpr std::int64_t kRowsAhead = 16;

// ---- Row-major keys: lanes are dimensions ------------------------------------------------------

template <typename T>
constexpr std::int64_t kLineElements = 64 / static_cast<std::int64_t>(sizeof(T));

constexpr int kRowKeys = 4;
constexpr int kRowQueries = kAccumulators >= 24 ? 4 : 2;

template <typename T, int Queries, bool kChosen>
void row_logits_of(const RowLogitsArgs& args, std::int64_t first_query) {
  const T* keys = static_cast<const T*>(args.keys);
  const float* queries = args.queries + first_query * args.head_dim;
  float* logits = args.logits + first_query * args.logits_stride;
  const auto key_of = [&](std::int64_t j) {
    return keys + (kChosen ? args.positions[j] : j) * args.key_stride;
  };
  for (std::int64_t token = 0; token < args.count; token += kRowKeys) {
    // Past the end the last key is repeated: the tail takes the same path as all others.
    const T* key[kRowKeys];
    for (int t = 0; t < kRowKeys; ++t) {
      key[t] = key_of(min_of(token + t, args.count - 1));
      if (kChosen && first_query == 0) {
        const T* ahead = key_of(min_of(token + t + kRowsAhead, args.count - 1));
        for (std::int64_t d = 0; d < args.head_dim; d += kLineElements<T>) prefetch(ahead + d);
      }
    }
    Vector acc[extent(Queries)][kRowKeys];
#pragma GCC unroll 8
    for (int q = 0; q < Queries; ++q) {
#pragma GCC unroll 8
      for (int t = 0; t < kRowKeys; ++t) acc[q][t] = zero();
    }
    const auto multiply = [&](std::int64_t d, auto load_lanes) {
      Vector k[kRowKeys];
#pragma GCC unroll 8
      for (int t = 0; t < kRowKeys; ++t) {
        if (!kChosen) prefetch(key[t] + kRowsAhead * args.key_stride + d);
        k[t] = load_lanes(key[t] + d);
      }
#pragma GCC unroll 8
      for (int q = 0; q < Queries; ++q) {
        const Vector query = load_lanes(queries + q * args.head_dim + d);
#pragma GCC unroll 8
        for (int t = 0; t < kRowKeys; ++t) acc[q][t] = fma(query, k[t], acc[q][t]);
      }
    };
    std::int64_t d = 0;
    for (; d + kLanes <= args.head_dim; d += kLanes) {
      multiply(d, [](const auto* p) { return load(p); });
    }
    if (d < args.head_dim) {
      multiply(d, [left = args.head_dim - d](const auto* p) { return load_some(p, left, 0.0F); });
    }
    const std::int64_t count = min_of(kRowKeys, args.count - token);
#pragma GCC unroll 8
    for (int q = 0; q < Queries; ++q) {
      float sums[kRowKeys];
      sum_lanes_of_four(acc[q], sums);
      float* out = logits + q * args.logits_stride + token;
      if (count == kRowKeys) {
        __builtin_memcpy(out, sums, sizeof(sums));
      } else {
        for (std::int64_t t = 0; t < count; ++t) out[t] = sums[t];
      }
    }
  }
}

void row_logits(const RowLogitsArgs& args) {
  with_element_type(args.dtype, [&]<typename T>(const T*) {
    for (std::int64_t q = 0; q < args.num_queries; q += kRowQueries) {
      with_constant<kRowQueries>(min_of(kRowQueries, args.num_queries - q), [&](auto queries) {
        constexpr int kQueries = decltype(queries)::value;
        if (args.positions == nullptr) {
          row_logits_of<T, kQueries, false>(args, q);
        } else {
          row_logits_of<T, kQueries, true>(args, q);
        }
      });
    }
  });
}

// ---- Softmax and values ------------------------------------------------------------------------

constexpr int kValueQueries = 8;
constexpr float kMinusInfinity = -__builtin_inff();

/// In place; all weights are 0 if every logit is -inf. Returns the logarithm of the sum of
/// exponentials.
HYBRIDGEN_INLINE float softmax(float* logits, std::int64_t count) {
  Vector largest = splat(kMinusInfinity);
  for (std::int64_t i = 0; i < count; i += kLanes) {
    largest = max_of(load_up_to(logits + i, count - i, kMinusInfinity), largest);
  }
  const float peak = max_lane(largest);
  // With every logit at -inf, -inf - 0 keeps the weights at 0 where -inf - -inf would give NaN.
  const Vector shift = splat(peak == kMinusInfinity ? 0.0F : peak);
  Vector sums = zero();
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const std::int64_t left = count - i;
    const Vector e = exp_of(sub(load_up_to(logits + i, left, kMinusInfinity), shift));
    store_up_to(logits + i, left, e);
    sums = add(sums, e);
  }
  const float sum = sum_lanes(sums);
  if (sum == 0.0F) return kMinusInfinity;
  const Vector inverse = splat(1.0F / sum);
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const std::int64_t left = count - i;
    store_up_to(logits + i, left, mul(load_up_to(logits + i, left), inverse));
  }
  return peak + __builtin_logf(sum);
}

/// Dimensions [dim, dim + Vectors * kLanes) of `Queries` outputs; one partial vector if left is
/// smaller than that. Each resident row is loaded once for all queries.
template <typename T, int Queries, int Vectors>
HYBRIDGEN_INLINE void value_columns(const SoftmaxValuesArgs& args,
                                    std::int64_t first_query,
                                    std::int64_t dim,
                                    std::int64_t left) {
  const auto load_values = [left](const T* p, int v) {
    return Vectors == 1 ? load_up_to(p, left) : load(p + v * kLanes);
  };
  Vector acc[extent(Queries)][extent(Vectors)];
  const float* weights[extent(Queries)];
#pragma GCC unroll 8
  for (int q = 0; q < Queries; ++q) {
    weights[q] = args.logits + (first_query + q) * args.logits_stride;
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) acc[q][v] = zero();
  }
  const auto add_shared_rows =
      [&](const T* row, std::int64_t stride, std::int64_t count, std::int64_t first_weight) {
        for (std::int64_t t = 0; t < count; ++t, row += stride) {
          Vector values[extent(Vectors)];
#pragma GCC unroll 16
          for (int v = 0; v < Vectors; ++v) {
            prefetch(row + kRowsAhead * stride + v * kLanes);
            values[v] = load_values(row, v);
          }
#pragma GCC unroll 8
          for (int q = 0; q < Queries; ++q) {
            const Vector weight = splat(weights[q][first_weight + t]);
#pragma GCC unroll 16
            for (int v = 0; v < Vectors; ++v) acc[q][v] = fma(weight, values[v], acc[q][v]);
          }
        }
      };
  const T* host = static_cast<const T*>(args.host_values) + dim;
  if (args.host_index == nullptr) {
    add_shared_rows(host, args.head_dim, args.host_count, 0);
  } else {
#pragma GCC unroll 8
    for (int q = 0; q < Queries; ++q) {
      const std::int32_t* index = args.host_index + (first_query + q) * args.host_count;
      for (std::int64_t j = 0; j < args.host_count; ++j) {
        const Vector weight = splat(weights[q][j]);
        const T* row = host + index[j] * args.head_dim;
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v) acc[q][v] = fma(weight, load_values(row, v), acc[q][v]);
      }
    }
  }
  add_shared_rows(static_cast<const T*>(args.resident_values) + dim,
                  args.resident_stride,
                  args.resident_count,
                  args.host_count);
#pragma GCC unroll 8
  for (int q = 0; q < Queries; ++q) {
    T* out = static_cast<T*>(args.out) + (first_query + q) * args.out_stride + dim;
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      if (Vectors == 1) {
        store_up_to(out, left, acc[q][v]);
      } else {
        store(out + v * kLanes, acc[q][v]);
      }
    }
  }
}

/// As many dimensions as the registers hold, then half of them, and so on.
template <typename T, int Queries, int Vectors>
HYBRIDGEN_INLINE void weighted_columns(const SoftmaxValuesArgs& args,
                                       std::int64_t first_query,
                                       std::int64_t dim) {
  constexpr std::int64_t kWidth = Vectors * kLanes;
  for (; dim + kWidth <= args.head_dim; dim += kWidth) {
    value_columns<T, Queries, Vectors>(args, first_query, dim, kWidth);
  }
  if constexpr (Vectors > 1) {
    weighted_columns<T, Queries, Vectors / 2>(args, first_query, dim);
  } else if (dim < args.head_dim) {
    value_columns<T, Queries, 1>(args, first_query, dim, args.head_dim - dim);
  }
}

template <typename T, int Queries>
void weighted_values(const SoftmaxValuesArgs& args, std::int64_t first_query) {
  constexpr int kMost = (kAccumulators >= 24 ? 16 : 8) / Queries;
  constexpr int kVectors = kMost >= 8 ? 8 : kMost >= 4 ? 4 : kMost >= 2 ? 2 : 1;
  weighted_columns<T, Queries, kVectors>(args, first_query, 0);
}

void softmax_values(const SoftmaxValuesArgs& args) {
  for (std::int64_t q = 0; q < args.num_queries; ++q) {
    const float lse =
        softmax(args.logits + q * args.logits_stride, args.host_count + args.resident_count);
    if (args.lse != nullptr) args.lse[q] = lse;
  }
  with_element_type(args.dtype, [&]<typename T>(const T*) {
    for (std::int64_t q = 0; q < args.num_queries; q += kValueQueries) {
      with_constant<kValueQueries>(min_of(kValueQueries, args.num_queries - q), [&](auto queries) {
        weighted_values<T, decltype(queries)::value>(args, q);
      });
    }
  });
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
