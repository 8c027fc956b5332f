// SPDX-License-Identifier: Apache-2.0
// Keyformer's scores of a prompt's tokens (Adnan et al., MLSys 2024; d-matrix-ai/keyformer-llm):
// sums of a noisy, tempered softmax over its rows.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "parts/prompt_scores.h"

namespace hybridgen {

/// Sums for a prompt chunk whose rows stand at positions [first_row, first_row + T): softmax((logit
/// + noise) / tau(0)) over all parts together. One float32 [H, N] per part.
std::vector<at::Tensor> keyformer_sums(const at::Tensor& query,
                                       const std::vector<ScoredKeys>& parts,
                                       const KeyformerScore& score,
                                       std::int64_t layer,
                                       std::int64_t first_row);

}  // namespace hybridgen
