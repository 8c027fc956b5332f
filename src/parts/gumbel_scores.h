// SPDX-License-Identifier: Apache-2.0
// Keyformer's scores of a prompt's tokens (Adnan et al., MLSys 2024; d-matrix-ai/keyformer-llm):
// sums of a noisy, tempered softmax over its rows.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "parts/prompt_scores.h"

namespace hybridgen {

/// Keys [G, N, D] at positions [first_position, first_position + N) that T query rows see: all of
/// them, or, causal, row t only the first t + 1 (then N == T).
struct ScoredKeys {
  at::Tensor keys;
  std::int64_t first_position = 0;
  bool causal = false;
};

/// Sums for a prompt chunk whose rows stand at positions [first_row, first_row + T): softmax((logit
/// + noise) / tau(0)) over all parts together. One float32 [H, N] per part.
std::vector<at::Tensor> keyformer_sums(const at::Tensor& query,
                                       const std::vector<ScoredKeys>& parts,
                                       const KeyformerScore& score,
                                       std::int64_t layer,
                                       std::int64_t first_row);

}  // namespace hybridgen
