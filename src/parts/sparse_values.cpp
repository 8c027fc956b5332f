// SPDX-License-Identifier: Apache-2.0
// FlexGen's sparse attention (Sheng et al., ICML 2023; FMInference/FlexLLMGen, `attn-sparsity`):
// the softmax runs over all tokens, but only values of the tokens with the largest weights are
// fetched, and the weights are not renormalised. The fetch waits for the weights, so nothing hides
// it.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>

#include <algorithm>
#include <cmath>

#include "device/device_ops.h"
#include "hybridgen/parts/part_roles.h"
#include "parts/own_attention.h"
#include "parts/parts.h"

namespace hybridgen {
namespace {

// Weights [G, R, n_c + n_g] of one request's tokens: offloaded ones (from shipped keys), resident.
at::Tensor all_weights(const at::Tensor& query, const AttentionItem& item) {
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

// All but the new token and the `keep` largest others become 0.
void drop_small_weights(at::Tensor& weights, std::int64_t keep) {
  const std::int64_t others = weights.size(-1) - 1;
  if (keep >= others) {
    return;
  }
  at::Tensor rest = weights.narrow(-1, 0, others);
  // Ties go to the newer token: resident ones come for free.
  const at::Tensor order = rest.flip(-1).argsort(/*stable=*/true, /*dim=*/-1, /*descending=*/true);
  const at::Tensor dropped = others - 1 - order.narrow(-1, keep, others - keep);
  rest.scatter_(-1, dropped, 0.0);
}

class SparseValues final : public OwnAttention {
 public:
  explicit SparseValues(double share) : share_(share) {}

  PartState state() const override { return {}; }

  Weights weigh(const AttentionItem& item, const at::Tensor& query) const override {
    Weights weights{all_weights(query, item), {}};
    const std::int64_t offloaded = weights.all.size(-1) - item.num_resident;
    drop_small_weights(weights.all, others_kept(weights.all.size(-1)));
    if (offloaded > 0) {
      const at::Tensor is_read = weights.all.narrow(-1, 0, offloaded) > 0;
      weights.readers = is_read.sum(1, /*keepdim=*/false, at::kShort);
    }
    return weights;
  }

  void attend(const AttentionItem& item,
              const Weights& weights,
              const FetchedValues* values,
              at::Tensor& out) const override {
    const std::int64_t resident = item.num_resident;
    const std::int64_t offloaded = weights.all.size(-1) - resident;
    at::Tensor sum = at::matmul(weights.all.narrow(-1, offloaded, resident),
                                item.values->narrow(1, item.first_slot, resident).to(at::kFloat));
    for (std::int64_t g = 0; values != nullptr && g < weights.all.size(0); ++g) {
      const at::Tensor own = weights.all.select(0, g).index_select(1, values->slots(g));
      sum.select(0, g).add_(at::matmul(own, values->rows(g).to(at::kFloat)));
    }
    out.copy_(sum.view(out.sizes()));
  }

  std::int64_t num_attended(std::int64_t num_offloaded, std::int64_t num_tokens) const override {
    return std::min(num_offloaded, others_kept(num_tokens));
  }

 private:
  // All tokens but the new one count.
  std::int64_t others_kept(std::int64_t num_tokens) const {
    return static_cast<std::int64_t>(share_ * static_cast<double>(num_tokens - 1));
  }

  double share_;
};

}  // namespace

PartFactory sparse_values_part(double share) {
  return {.role = PartRole::kOwnAttention,
          .make = [share](const PartContext&) { return std::make_unique<SparseValues>(share); }};
}

}  // namespace hybridgen
