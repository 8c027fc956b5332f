// SPDX-License-Identifier: Apache-2.0
#include "pipeline/prefill_scores.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/gumbel.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kBlockElements = std::int64_t{1} << 22;  // of float32 logits at a time
constexpr double kHidden = -std::numeric_limits<double>::infinity();

// Calls visit(first row, logits [G, R, rows, N]) for blocks of query rows; hidden logits are -inf.
template <typename Visit>
void for_row_blocks(const at::Tensor& query, const ScoredKeys& part, const Visit& visit) {
  const std::int64_t rows = query.size(0);
  const std::int64_t heads = query.size(1);
  const std::int64_t head_dim = query.size(2);
  const std::int64_t groups = part.keys.size(0);
  const std::int64_t columns = part.keys.size(1);
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  const at::Tensor keys = part.keys.to(at::kFloat).unsqueeze(1).transpose(2, 3);  // [G, 1, D, N]
  const std::int64_t block = std::clamp<std::int64_t>(kBlockElements / (heads * columns), 1, rows);
  for (std::int64_t first = 0; first < rows; first += block) {
    const std::int64_t count = std::min(block, rows - first);
    const at::Tensor q = query.narrow(0, first, count)
                             .to(at::kFloat)
                             .permute({1, 0, 2})
                             .reshape({groups, heads / groups, count, head_dim}) *
                         scale;
    at::Tensor logits = at::matmul(q, keys);
    if (part.causal) {
      const at::Tensor future =
          at::ones({count, columns}, logits.options().dtype(at::kBool)).triu(first + 1);
      logits.masked_fill_(future, kHidden);
    }
    visit(first, logits);
  }
}

// logits [G, R, rows, N] of a block <- (logits + noise) / tau.
void perturb(at::Tensor& logits,
             const KeyformerScore& score,
             std::int64_t layer,
             std::int64_t first_row,
             std::int64_t first_position) {
  const std::int64_t groups = logits.size(0);
  const std::int64_t rows = logits.size(2);
  const std::int64_t columns = logits.size(3);
  if (score.noise) {
    at::Tensor noise = at::empty({groups, 1, rows, columns}, at::kFloat);
    auto* out = noise.mutable_data_ptr<float>();
    at::parallel_for(0, groups * rows, /*grain_size=*/1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        kernels::gumbel_row({score.seed, score.request, layer, i / rows, first_row + i % rows},
                            first_position,
                            columns,
                            out + i * columns);
      }
    });
    logits.add_(noise.to(logits.device()));
  }
  logits.div_(score.tau(0));
}

}  // namespace

at::Tensor column_sums(const at::Tensor& query, const ScoredKeys& part, const at::Tensor& lse) {
  const std::int64_t heads = query.size(1);
  at::Tensor sums = at::zeros({heads, part.keys.size(1)}, query.options().dtype(at::kFloat));
  for_row_blocks(query, part, [&](std::int64_t first, at::Tensor& logits) {
    const std::int64_t count = logits.size(2);
    const at::Tensor weights = at::exp(logits.view({heads, count, -1}) -
                                       lse.narrow(1, first, count).to(at::kFloat).unsqueeze(-1));
    sums.add_(weights.sum(1));
  });
  return sums.cpu();
}

std::vector<at::Tensor> keyformer_sums(const at::Tensor& query,
                                       const std::vector<ScoredKeys>& parts,
                                       const KeyformerScore& score,
                                       std::int64_t layer,
                                       std::int64_t first_row) {
  const std::int64_t rows = query.size(0);
  const std::int64_t heads = query.size(1);
  at::Tensor lse = at::full({heads, rows}, kHidden, query.options().dtype(at::kFloat));
  const auto for_perturbed = [&](const ScoredKeys& part, const auto& visit) {
    for_row_blocks(query, part, [&](std::int64_t first, at::Tensor& logits) {
      perturb(logits, score, layer, first_row + first, part.first_position);
      visit(first, logits.view({heads, logits.size(2), -1}));
    });
  };
  for (const ScoredKeys& part : parts) {
    for_perturbed(part, [&](std::int64_t first, const at::Tensor& logits) {
      at::Tensor own = lse.narrow(1, first, logits.size(1));
      own.copy_(at::logaddexp(own, at::logsumexp(logits, {-1})));
    });
  }
  std::vector<at::Tensor> sums;
  for (const ScoredKeys& part : parts) {
    at::Tensor sum = at::zeros({heads, part.keys.size(1)}, lse.options());
    for_perturbed(part, [&](std::int64_t first, const at::Tensor& logits) {
      sum.add_(at::exp(logits - lse.narrow(1, first, logits.size(1)).unsqueeze(-1)).sum(1));
    });
    sums.push_back(sum.cpu());
  }
  return sums;
}

}  // namespace hybridgen
