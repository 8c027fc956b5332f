// SPDX-License-Identifier: Apache-2.0
#include "parts/gumbel_scores.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "device/row_blocks.h"
#include "kernels/gumbel.h"

namespace hybridgen {
namespace {

// logits [G, R, rows, N] of a block <- (logits + noise) / tau. `memory` is of the call before.
void perturb(at::Tensor& logits,
             at::Tensor& memory,
             const KeyformerScore& score,
             std::int64_t layer,
             std::int64_t first_row,
             std::int64_t first_position) {
  const std::int64_t groups = logits.size(0);
  const std::int64_t rows = logits.size(2);
  const std::int64_t columns = logits.size(3);
  if (score.noise) {
    const std::int64_t count = groups * rows * columns;
    if (!memory.defined() || memory.numel() < count) memory = at::empty({count}, at::kFloat);
    const at::Tensor noise = memory.narrow(0, 0, count).view({groups, 1, rows, columns});
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

// at::logsumexp over the last dimension, in the memory of the logits, no row of which is all -inf.
at::Tensor logsumexp_of(at::Tensor& logits) {
  const at::Tensor largest = logits.amax({-1}, /*keepdim=*/true);
  return logits.sub_(largest).exp_().sum({-1}).log_().add_(largest.squeeze(-1));
}

class GumbelScores final : public SummedPromptScores {
 public:
  GumbelScores(const PartContext& context, KeyformerScore score)
      : SummedPromptScores(context), score_(score) {
    score_.request = context.request.content;
  }

  void on_prompt_rows(const PromptRows& rows) override {
    std::vector<ScoredKeys> parts;
    if (rows.first_row > 0) {
      parts.push_back({rows.resident_keys, 0, /*causal=*/false});
    }
    parts.push_back({rows.keys, rows.first_row, /*causal=*/true});
    const std::vector<at::Tensor> sums =
        keyformer_sums(rows.query, parts, score_, rows.layer, rows.first_row);
    const std::int64_t groups = rows.keys.size(0);
    const std::int64_t per_group = rows.query.size(1) / groups;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const std::int64_t first = parts[i].first_position;
      const std::int64_t count = sums[i].size(1);
      for (std::int64_t g = 0; g < groups; ++g) {
        add(rows.layer,
            g,
            {.tokens = {first, first + count},
             .num_queries = per_group,
             .num_rows = rows.query.size(0),
             .sums = sums[i].const_data_ptr<float>() + g * per_group * count,
             .stride = count});
      }
    }
  }

 private:
  KeyformerScore score_;
};

}  // namespace

std::vector<at::Tensor> keyformer_sums(const at::Tensor& query,
                                       const std::vector<ScoredKeys>& parts,
                                       const KeyformerScore& score,
                                       std::int64_t layer,
                                       std::int64_t first_row) {
  const std::int64_t rows = query.size(0);
  const std::int64_t heads = query.size(1);
  at::Tensor lse = at::full(
      {heads, rows}, -std::numeric_limits<double>::infinity(), query.options().dtype(at::kFloat));
  at::Tensor noise;
  const auto for_perturbed = [&](const ScoredKeys& part, const auto& visit) {
    for_row_blocks(query, part.keys, part.causal, [&](std::int64_t first, at::Tensor& logits) {
      perturb(logits, noise, score, layer, first_row + first, part.first_position);
      at::Tensor of_heads = logits.view({heads, logits.size(2), -1});
      visit(first, of_heads);
    });
  };
  for (const ScoredKeys& part : parts) {
    for_perturbed(part, [&](std::int64_t first, at::Tensor& logits) {
      at::Tensor own = lse.narrow(1, first, logits.size(1));
      own.copy_(at::logaddexp(own, logsumexp_of(logits)));
    });
  }
  std::vector<at::Tensor> sums;
  for (const ScoredKeys& part : parts) {
    at::Tensor sum = at::zeros({heads, part.keys.size(1)}, lse.options());
    for_perturbed(part, [&](std::int64_t first, at::Tensor& logits) {
      sum.add_(logits.sub_(lse.narrow(1, first, logits.size(1)).unsqueeze(-1)).exp_().sum(1));
    });
    sums.push_back(sum.cpu());
  }
  return sums;
}

PartFactory gumbel_scores_part(const KeyformerScore& score) {
  return {.role = PartRole::kPromptScores, .make = [score](const PartContext& context) {
            return std::make_unique<GumbelScores>(context, score);
          }};
}

}  // namespace hybridgen
