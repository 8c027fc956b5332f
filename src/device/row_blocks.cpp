// SPDX-License-Identifier: Apache-2.0
#include "device/row_blocks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace hybridgen {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();

}  // namespace

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
  const std::int64_t block =
      std::clamp<std::int64_t>(kScoreBlockElements / (heads * columns), 1, rows);
  for (std::int64_t first = 0; first < rows; first += block) {
    const std::int64_t count = std::min(block, rows - first);
    const at::Tensor q = query.narrow(0, first, count)
                             .to(at::kFloat)
                             .permute({1, 0, 2})
                             .reshape({groups, heads / groups * count, head_dim}) *
                         scale;
    // One product per KV head: with an own one per query head matmul() would copy the keys.
    at::Tensor logits =
        at::matmul(q, columns_of_keys).view({groups, heads / groups, count, columns});
    if (causal) {
      const at::Tensor future =
          at::ones({count, columns}, logits.options().dtype(at::kBool)).triu(first + 1);
      logits.masked_fill_(future, kHidden);
    }
    visit(first, logits);
  }
}

}  // namespace hybridgen
