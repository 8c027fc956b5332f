// SPDX-License-Identifier: Apache-2.0
// Logits of a prompt's rows by LibTorch, block by block, so that no matrix of prompt by prompt is
// ever held.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

namespace hybridgen {

/// Query rows whose `row_elements` logits each make a block: 4 MiB of float32; four rows, whose
/// product reads the keys once, up to 16 MiB; or one row, however long.
std::int64_t score_block_rows(std::int64_t row_elements);

/// Calls visit(first row, logits [G, R, rows, N]) for blocks of query rows [T, H, D] over keys
/// [G, N, D]; causal: row t sees keys [0, t], and hidden logits are -inf. They are valid until
/// visit() returns, which may overwrite them.
void for_row_blocks(const at::Tensor& query,
                    const at::Tensor& keys,
                    bool causal,
                    const std::function<void(std::int64_t, at::Tensor&)>& visit);

}  // namespace hybridgen
