// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/pipeline/partial_keys.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace hybridgen {

PartialKeys::PartialKeys(const ModelConfig& config,
                         at::TensorOptions options,
                         const PartialKeyOptions& settings,
                         std::int64_t capacity)
    : settings_(settings),
      num_kv_heads_(config.num_kv_heads),
      query_heads_per_kv_head_(config.query_heads_per_kv_head()),
      head_dim_(config.head_dim),
      num_columns_(num_columns(config, settings)),
      columns_(static_cast<std::size_t>(config.num_layers)) {
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    keys_.push_back(at::empty({num_kv_heads_, capacity, num_columns_}, options));
  }
}

std::int64_t PartialKeys::num_columns(const ModelConfig& config,
                                      const PartialKeyOptions& settings) {
  return std::max<std::int64_t>(
      1, static_cast<std::int64_t>(settings.column_share * static_cast<double>(config.head_dim)));
}

std::int64_t PartialKeys::required_bytes(const ModelConfig& config,
                                         DType dtype,
                                         const PartialKeyOptions& settings,
                                         std::int64_t capacity) {
  return config.num_layers * config.num_kv_heads * capacity * num_columns(config, settings) *
         static_cast<std::int64_t>(size_of(dtype));
}

void PartialKeys::choose_columns(std::int64_t layer, const at::Tensor& queries) {
  const at::Tensor q = queries.to(at::kFloat)
                           .permute({1, 0, 2})
                           .reshape({num_kv_heads_, -1, head_dim_});  // [G, R T, D]
  // The right singular vectors of q are the eigenvectors of q^T q, which is small.
  const auto [values, vectors] = at::linalg_eigh(at::matmul(q.transpose(1, 2), q), "L");
  const at::Tensor weights = at::matmul(q, vectors).abs().sum(1);  // [G, D]
  const at::Tensor chosen = std::get<1>(at::topk(weights, num_columns_, -1));
  columns_[static_cast<std::size_t>(layer)] =
      vectors.gather(2, chosen.unsqueeze(1).expand({-1, head_dim_, -1})).contiguous();
}

void PartialKeys::write(std::int64_t layer, std::int64_t first_slot, const at::Tensor& keys) {
  keys_[static_cast<std::size_t>(layer)]
      .narrow(1, first_slot, keys.size(1))
      .copy_(at::matmul(keys.to(at::kFloat), columns_[static_cast<std::size_t>(layer)]));
}

void PartialKeys::write_row(std::int64_t layer,
                            std::int64_t kv_head,
                            std::int64_t slot,
                            const at::Tensor& key) {
  keys_[static_cast<std::size_t>(layer)]
      .select(0, kv_head)
      .select(0, slot)
      .copy_(at::matmul(key.to(at::kFloat),
                        columns_[static_cast<std::size_t>(layer)].select(0, kv_head)));
}

at::Tensor PartialKeys::guess(std::int64_t layer,
                              const at::Tensor& query,
                              std::int64_t num_tokens) const {
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim_));
  const at::Tensor heads = query.to(at::kFloat).view({num_kv_heads_, -1, head_dim_}) * scale;
  const at::Tensor& keys = keys_[static_cast<std::size_t>(layer)];
  const at::Tensor partial =
      at::matmul(heads, columns_[static_cast<std::size_t>(layer)]).to(keys.scalar_type());
  return at::matmul(partial, keys.narrow(1, 0, num_tokens).transpose(1, 2)).amax(1).to(at::kFloat);
}

std::int64_t PartialKeys::fetch_count(const at::Tensor& guesses,
                                      double alpha,
                                      const TokenCount& max_fetch) {
  const at::Tensor near = guesses > guesses.amax(-1, /*keepdim=*/true) - alpha;
  const double mean = near.sum(-1).to(at::kDouble).mean().item<double>();
  const std::int64_t most = max_fetch.resolve(guesses.size(1));
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(mean), 1, most);
}

at::Tensor PartialKeys::plan(std::int64_t layer,
                             const at::Tensor& query,
                             std::int64_t num_tokens,
                             std::optional<std::int64_t> count) const {
  const at::Tensor guesses = guess(layer, query, num_tokens);
  const std::int64_t wanted =
      count ? *count : fetch_count(guesses, settings_.alpha, settings_.max_fetch);
  const at::Tensor chosen = std::get<1>(at::topk(guesses, wanted, -1));
  return std::get<0>(at::sort(chosen, -1)).cpu();
}

}  // namespace hybridgen
