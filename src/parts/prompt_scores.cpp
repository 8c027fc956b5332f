// SPDX-License-Identifier: Apache-2.0
#include "parts/prompt_scores.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

namespace hybridgen {

SummedPromptScores::SummedPromptScores(const PartContext& context)
    : groups_(context.config.num_kv_heads), capacity_(context.prompt_capacity) {
  sums_.resize(static_cast<std::size_t>(context.config.num_layers));
}

void SummedPromptScores::add(std::int64_t layer,
                             std::int64_t kv_head,
                             const PrefillAttention& attention) {
  at::Tensor& sums = sums_[static_cast<std::size_t>(layer)];
  if (!sums.defined()) {
    sums = at::zeros({groups_, capacity_}, at::kFloat);
  }
  float* to = sums.mutable_data_ptr<float>() + kv_head * capacity_ + attention.tokens.begin;
  for (std::int64_t query = 0; query < attention.num_queries; ++query) {
    const float* from = attention.sums + query * attention.stride;
    for (std::int64_t t = 0; t < attention.tokens.size(); ++t) {
      to[t] += from[t];
    }
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

namespace {

class WeightScores final : public SummedPromptScores {
 public:
  using SummedPromptScores::SummedPromptScores;

  PrefillWeights prefill_weights() const override { return PrefillWeights::kGlobal; }
  void on_prefill(std::int64_t layer,
                  std::int64_t kv_head,
                  const PrefillAttention& attention) override {
    add(layer, kv_head, attention);
  }
};

}  // namespace

PartFactory prompt_scores_part() {
  return {.role = PartRole::kPromptScores, .make = [](const PartContext& context) {
            return std::make_unique<WeightScores>(context);
          }};
}

}  // namespace hybridgen
