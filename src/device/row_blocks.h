// SPDX-License-Identifier: Apache-2.0
// Logits of a prompt's rows by LibTorch, block by block, so that no matrix of prompt by prompt is
// ever held.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace hybridgen {

/// float32 logits of a block of rows: 16 MiB, or one row's.
inline constexpr std::int64_t kScoreBlockElements = std::int64_t{1} << 22;

/// Calls visit(first row, logits [G, R, rows, N]) for blocks of query rows [T, H, D] over keys
/// [G, N, D]; causal: row t sees keys [0, t], and hidden logits are -inf.
void for_row_blocks(const at::Tensor& query,
                    const at::Tensor& keys,
                    bool causal,
                    const std::function<void(std::int64_t, at::Tensor&)>& visit);

}  // namespace hybridgen
