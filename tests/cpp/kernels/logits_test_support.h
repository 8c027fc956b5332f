// SPDX-License-Identifier: Apache-2.0
// Keys in both layouts, queries, and the dot products of them in float64.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernel_test_support.h"

namespace hybridgen::kernels::test {

struct Keys {
  Array rows;
  Array blocked = {};
  std::int64_t head_dim = 0;

  BlockedKeyView view() const {
    return {.data = blocked.data(),
            .dtype = blocked.dtype(),
            .head_dim = head_dim,
            .capacity = blocked.count() / head_dim};
  }
};

inline Keys random_keys(DType dtype, std::int64_t tokens, std::int64_t head_dim) {
  Keys keys{.rows = random_array(dtype, tokens * head_dim, 4), .head_dim = head_dim};
  keys.blocked = block_keys(keys.rows, head_dim);
  return keys;
}

inline std::vector<float> blocked_logits(const CpuKernels& kernels,
                                         const Keys& keys,
                                         const std::vector<float>& queries,
                                         std::int64_t num_queries,
                                         TokenRange tokens,
                                         Prefetch prefetch = scan_prefetch()) {
  std::vector<float> logits(static_cast<std::size_t>(num_queries * tokens.size()));
  kernels.blocked_logits({.keys = keys.view(),
                          .queries = queries.data(),
                          .num_queries = num_queries,
                          .tokens = tokens,
                          .logits = logits.data(),
                          .logits_stride = tokens.size(),
                          .prefetch = prefetch});
  return logits;
}

/// Float32 numbers of any kind: nothing but float32 arithmetic is exact enough for them.
inline std::vector<float> any_queries(std::int64_t count, std::int64_t head_dim) {
  return random_floats(count * head_dim, 5);
}

/// Queries as the engine has them: numbers of the model's type, scaled in float32.
inline std::vector<float> model_queries(DType dtype, std::int64_t count, std::int64_t head_dim) {
  const Array numbers = random_array(dtype, count * head_dim, 6);
  const float scale = 1.0F / std::sqrt(static_cast<float>(head_dim));
  std::vector<float> queries(static_cast<std::size_t>(count * head_dim));
  for (std::int64_t i = 0; i < count * head_dim; ++i) {
    queries[static_cast<std::size_t>(i)] = numbers.at(i) * scale;
  }
  return queries;
}

/// Each term and each sum is rounded to float32 (also where the scale is applied to the sum: two of
/// sum_error's spare roundings). Denormal queries, keys and sums may count as zero, so each term
/// may be off by 2^-126 times the other factor, and each sum by 2^-126.
inline void expect_dot_products(const std::vector<float>& logits,
                                const Keys& keys,
                                const std::vector<float>& queries,
                                std::int64_t num_queries,
                                TokenRange tokens) {
  for (std::int64_t q = 0; q < num_queries; ++q) {
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
      double expected = 0.0;
      double size = 0.0;
      double flushed = 0.0;
      for (std::int64_t d = 0; d < keys.head_dim; ++d) {
        const double query = queries[static_cast<std::size_t>(q * keys.head_dim + d)];
        const double key = keys.rows.at(t * keys.head_dim + d);
        expected += query * key;
        size += std::abs(query * key);
        flushed += std::abs(query) + std::abs(key) + 1.0;
      }
      const auto at = static_cast<std::size_t>(q * tokens.size() + t - tokens.begin);
      ASSERT_NEAR(logits[at], expected, size * sum_error(keys.head_dim) + std::ldexp(flushed, -126))
          << "query " << q << " token " << t << " head_dim " << keys.head_dim;
    }
  }
}

}  // namespace hybridgen::kernels::test
