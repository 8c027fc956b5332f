// SPDX-License-Identifier: Apache-2.0
#include "parts/prompt_scores.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace hybridgen {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();

}  // namespace

void for_row_blocks(const at::Tensor& query,
                    const ScoredKeys& part,
                    const std::function<void(std::int64_t, at::Tensor&)>& visit) {
  const std::int64_t rows = query.size(0);
  const std::int64_t heads = query.size(1);
  const std::int64_t head_dim = query.size(2);
  const std::int64_t groups = part.keys.size(0);
  const std::int64_t columns = part.keys.size(1);
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  const at::Tensor keys = part.keys.to(at::kFloat).transpose(1, 2);  // [G, D, N]
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
    at::Tensor logits = at::matmul(q, keys).view({groups, heads / groups, count, columns});
    if (part.causal) {
      const at::Tensor future =
          at::ones({count, columns}, logits.options().dtype(at::kBool)).triu(first + 1);
      logits.masked_fill_(future, kHidden);
    }
    visit(first, logits);
  }
}

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

SummedPromptScores::SummedPromptScores(const PartContext& context)
    : groups_(context.config.num_kv_heads), capacity_(context.prompt_capacity) {
  sums_.resize(static_cast<std::size_t>(context.config.num_layers));
}

void SummedPromptScores::on_prompt_rows(const PromptRows& rows) {
  at::Tensor& sums = sums_[static_cast<std::size_t>(rows.layer)];
  if (!sums.defined()) {
    sums = at::zeros({groups_, capacity_}, at::kFloat);
  }
  std::vector<ScoredKeys> parts;
  if (rows.first_row > 0) {
    parts.push_back({rows.resident_keys, 0, /*causal=*/false});
  }
  parts.push_back({rows.keys, rows.first_row, /*causal=*/true});
  const std::vector<at::Tensor> added = score(rows, parts);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::int64_t count = parts[i].keys.size(1);
    sums.narrow(1, parts[i].first_position, count).add_(added[i].view({groups_, -1, count}).sum(1));
  }
}

std::span<const float> SummedPromptScores::sums(std::int64_t layer,
                                                std::int64_t kv_head,
                                                std::int64_t num_tokens) const {
  const at::Tensor& sums = sums_[static_cast<std::size_t>(layer)];
  if (!sums.defined()) {
    return {};  // there was no prompt
  }
  return {sums.const_data_ptr<float>() + kv_head * sums.stride(0),
          static_cast<std::size_t>(num_tokens)};
}

void SummedPromptScores::forget() { std::ranges::fill(sums_, at::Tensor{}); }

std::vector<at::Tensor> SummedPromptScores::score(const PromptRows& rows,
                                                  const std::vector<ScoredKeys>& parts) const {
  std::vector<at::Tensor> sums;
  for (const ScoredKeys& part : parts) {
    sums.push_back(column_sums(rows.query, part, rows.lse));
  }
  return sums;
}

PartFactory prompt_scores_part() {
  return {.role = PartRole::kPromptScores, .make = [](const PartContext& context) {
            return std::make_unique<SummedPromptScores>(context);
          }};
}

}  // namespace hybridgen
