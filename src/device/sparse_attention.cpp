// SPDX-License-Identifier: Apache-2.0
// DeviceOps::weigh() and sum_kept() through LibTorch's operators, row by row.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>

#include "device/device_ops.h"
#include "device/planning.h"

namespace hybridgen {
namespace {

/// [H, N] of all tokens of a row, as weigh() leaves them.
at::Tensor weights_of(const AttentionItem& item, const PlanItem& kept) {
  const std::int64_t heads = kept.places.size(0);
  const std::int64_t tokens = kept.num_tokens + 1;
  return item.merged_logits->narrow(0, 0, heads * tokens).view({heads, tokens});
}

// Weights [G, R, N] of one row's tokens: offloaded ones (from shipped keys), resident.
at::Tensor softmax_of_all(const at::Tensor& query, const AttentionItem& item) {
  const std::int64_t groups = item.keys->size(0);
  const std::int64_t head_dim = query.size(-1);
  const at::Tensor heads = query.to(at::kFloat).view({groups, -1, head_dim});
  const std::int64_t per_group = heads.size(1);
  at::Tensor logits = item.resident_logits->narrow(0, 0, groups * per_group * item.num_resident)
                          .view({groups, per_group, item.num_resident});
  if (item.payload != nullptr) {
    const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
    const at::Tensor keys = item.payload->keys.narrow(1, 0, item.payload->count).to(at::kFloat);
    logits = at::cat({at::matmul(heads * scale, keys.transpose(1, 2)), logits}, -1);
  }
  return at::softmax(logits, -1);
}

// `weights` where a token is kept or the newest, else 0. A place that is none is the newest's.
at::Tensor kept_weights(const at::Tensor& weights, const PlanItem& kept) {
  at::Tensor all = at::zeros_like(weights);
  all.narrow(1, kept.num_tokens, 1).copy_(weights.narrow(1, kept.num_tokens, 1));
  const at::Tensor places = kept.places.to(at::kLong);
  return all.scatter_(1, places, weights.gather(1, places));
}

// Weights [R, rows] of the fetched rows of a KV head's query heads, of `weights` [R, N].
at::Tensor fetched_weights(const at::Tensor& weights,
                           const at::Tensor& places,  // [R, S] of offloaded tokens, then others
                           const at::Tensor& index,   // the same: rows
                           std::int64_t offloaded,
                           std::int64_t rows) {
  const at::Tensor own =
      weights.gather(1, places.to(at::kLong)).masked_fill(places >= offloaded, 0.0);
  return at::zeros({weights.size(0), rows}, weights.options())
      .scatter_add_(1, index.to(at::kLong).clamp_max(rows - 1), own);
}

void add_fetched(const at::Tensor& weights,
                 const HostPayload& payload,
                 const PlanItem& kept,
                 std::int64_t offloaded,
                 at::Tensor& sum) {
  const std::int64_t groups = sum.size(0);
  const std::int64_t per_group = sum.size(1);
  const at::Tensor index =
      payload.index.narrow(0, 0, groups * per_group * payload.count).view({-1, payload.count});
  const at::Tensor places = kept.places.narrow(1, 0, payload.count);
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::int64_t rows = payload.union_sizes[static_cast<std::size_t>(g)];
    if (rows == 0) {
      continue;
    }
    const auto of_head = [&](const at::Tensor& all) {
      return all.narrow(0, g * per_group, per_group);
    };
    const at::Tensor own =
        fetched_weights(of_head(weights), of_head(places), of_head(index), offloaded, rows);
    const at::Tensor values = payload.values.select(0, g).narrow(0, 0, rows).to(at::kFloat);
    sum.select(0, g).add_(at::matmul(own, values));
  }
}

}  // namespace

void DeviceOps::weigh(const at::Tensor& query,
                      const AttentionBatch& batch,
                      const PlanBatch& kept) const {
  for (const PlanItem& row : kept.items) {
    const AttentionItem& item = batch.items[static_cast<std::size_t>(row.row)];
    at::Tensor weights = weights_of(item, row);
    weights.copy_(softmax_of_all(query.select(0, row.row), item).view(weights.sizes()));
    at::Tensor places = row.places;
    if (row.most > 0) {
      rank_through_torch(row.guesses, /*count=*/{}, row.takes_newer, places);
    }
  }
}

void DeviceOps::sum_kept(const AttentionBatch& batch,
                         const PlanBatch& kept,
                         at::Tensor& out) const {
  for (const PlanItem& row : kept.items) {
    const AttentionItem& item = batch.items[static_cast<std::size_t>(row.row)];
    const std::int64_t groups = item.values->size(0);
    const std::int64_t resident = item.num_resident;
    const std::int64_t offloaded = row.num_tokens + 1 - resident;
    const at::Tensor weights = kept_weights(weights_of(item, row), row);
    const at::Tensor of_residents =
        weights.view({groups, -1, row.num_tokens + 1}).narrow(-1, offloaded, resident);
    at::Tensor sum =
        at::matmul(of_residents, item.values->narrow(1, item.first_slot, resident).to(at::kFloat));
    if (item.payload != nullptr && item.payload->count > 0) {
      add_fetched(weights, *item.payload, row, offloaded, sum);
    }
    at::Tensor to = out.select(0, row.row);
    to.copy_(sum.view(to.sizes()));
  }
}

}  // namespace hybridgen
