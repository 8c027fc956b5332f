// SPDX-License-Identifier: Apache-2.0
#include "device/row_blocks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace hybridgen {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();
constexpr std::int64_t kBlockElements = std::int64_t{1} << 20;
constexpr std::int64_t kFewestRows = 4;

}  // namespace

std::int64_t score_block_rows(std::int64_t row_elements) {
  const std::int64_t rows = kBlockElements / row_elements;
  if (rows >= kFewestRows) return rows;
  return std::clamp<std::int64_t>(kFewestRows * kBlockElements / row_elements, 1, kFewestRows);
}

void for_row_blocks(const at::Tensor& query,
                    const at::Tensor& keys,
                    bool causal,
                    const std::function<void(std::int64_t, at::Tensor&)>& visit) {
  const std::int64_t rows = query.size(0);
  const std::int64_t heads = query.size(1);
  const std::int64_t head_dim = query.size(2);
  const std::int64_t groups = keys.size(0);
  const std::int64_t columns = keys.size(1);
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  const at::Tensor columns_of_keys = keys.to(at::kFloat).transpose(1, 2);  // [G, D, N]
  const std::int64_t block = std::min(score_block_rows(heads * columns), rows);
  // Once for all blocks: what is taken and given back between other sizes leaves gaps in the heap.
  const at::Tensor memory = at::empty({block * heads * columns}, columns_of_keys.options());
  for (std::int64_t first = 0; first < rows; first += block) {
    const std::int64_t count = std::min(block, rows - first);
    const at::Tensor q = query.narrow(0, first, count)
                             .to(at::kFloat)
                             .permute({1, 0, 2})
                             .reshape({groups, heads / groups * count, head_dim}) *
                         scale;
    // One product per KV head, so that its query heads share the keys.
    at::Tensor products = memory.narrow(0, 0, count * heads * columns)
                              .view({groups, heads / groups * count, columns});
    at::bmm_out(products, q, columns_of_keys);
    at::Tensor logits = products.view({groups, heads / groups, count, columns});
    if (causal) {
      const at::Tensor future =
          at::ones({count, columns}, logits.options().dtype(at::kBool)).triu(first + 1);
      logits.masked_fill_(future, kHidden);
    }
    visit(first, logits);
  }
}

}  // namespace hybridgen
