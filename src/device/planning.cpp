// SPDX-License-Identifier: Apache-2.0
#include "device/planning.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/sort.h>

#include <cmath>

namespace hybridgen {
namespace {

void guess(const at::Tensor& queries, const at::Tensor& keys, at::Tensor& guesses) {
  const std::int64_t tokens = guesses.size(1);
  const std::int64_t block = keys.size(3);
  const at::Tensor used = keys.narrow(1, 0, (tokens + block - 1) / block);
  const at::Tensor logits = at::matmul(queries.unsqueeze(1), used);  // [G, blocks, R, 32]
  guesses.copy_(logits.amax(2).flatten(1).narrow(1, 0, tokens));
}

}  // namespace

void rank_through_torch(const at::Tensor& guesses,
                        const at::Tensor& count,
                        bool takes_newer,
                        at::Tensor& places) {
  // The largest first, of equal scores the earlier token, as on the CPU; which one topk() takes is
  // undefined.
  const at::Tensor scores = takes_newer ? guesses.flip(-1) : guesses;
  at::Tensor best = std::get<1>(at::sort(scores, /*stable=*/true, /*dim=*/-1, /*descending=*/true))
                        .narrow(-1, 0, places.size(1));
  if (takes_newer) {
    best = scores.size(1) - 1 - best;
  }
  at::Tensor unwanted = scores.isnan().any();
  if (count.defined()) {
    unwanted = unwanted.logical_or(at::arange(places.size(1), best.options()) >= count);
  }
  places.copy_(std::get<0>(at::sort(best.masked_fill(unwanted, scores.size(1)), -1)));
}

at::Tensor turned_queries(const at::Tensor& query, const PlanItem& item, std::int64_t layer) {
  const at::Tensor columns = item.columns->select(0, layer);
  const std::int64_t groups = columns.size(0);
  const std::int64_t head_dim = columns.size(1);
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  const at::Tensor heads =
      query.select(0, item.row).to(at::kFloat).view({groups, -1, head_dim}) * scale;
  return at::matmul(heads, columns).to(item.keys->scalar_type());
}

at::Tensor count_near(const at::Tensor& guesses, double alpha, std::int64_t most) {
  const at::Tensor near = guesses > guesses.amax(-1, /*keepdim=*/true) - alpha;
  return near.sum(-1).to(at::kDouble).mean().to(at::kLong).clamp(1, most);
}

void plan_through_torch(const at::Tensor& query, const PlanBatch& batch) {
  for (const PlanItem& item : batch.items) {
    at::Tensor guesses = item.guesses;
    at::Tensor places = item.places;
    guess(turned_queries(query, item, batch.layer), item.keys->select(0, batch.layer), guesses);
    rank_through_torch(guesses,
                       item.alpha ? count_near(guesses, *item.alpha, item.most) : at::Tensor{},
                       item.takes_newer,
                       places);
  }
}

}  // namespace hybridgen
