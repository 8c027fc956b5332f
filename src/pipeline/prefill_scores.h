// SPDX-License-Identifier: Apache-2.0
// What methods that rank tokens by attention need from a prompt: sums of softmax weights over its
// rows. Computed in a second pass from the rows' log-sum-exps, block by block, so that no matrix of
// prompt by prompt is ever held.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "hybridgen/selection/retention_policy.h"

namespace hybridgen {

/// Keys [G, N, D] at positions [first_position, first_position + N) that T query rows see: all of
/// them, or, causal, row t only the first t + 1 (then N == T).
struct ScoredKeys {
  at::Tensor keys;
  std::int64_t first_position = 0;
  bool causal = false;
};

/// Sums over T rows of exp(logit - lse): float32 [H, N] on the host. query [T, H, D]; lse [H, T]
/// natural, of the softmax meant: over all tokens, or over this part only.
at::Tensor column_sums(const at::Tensor& query, const ScoredKeys& keys, const at::Tensor& lse);

/// Keyformer's sums for a prompt chunk whose rows stand at positions [first_row, first_row + T):
/// softmax((logit + noise) / tau(0)) over all parts together. One float32 [H, N] per part.
std::vector<at::Tensor> keyformer_sums(const at::Tensor& query,
                                       const std::vector<ScoredKeys>& parts,
                                       const KeyformerScore& score,
                                       std::int64_t layer,
                                       std::int64_t first_row);

}  // namespace hybridgen
