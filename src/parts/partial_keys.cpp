// SPDX-License-Identifier: Apache-2.0
#include "parts/partial_keys.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/topk.h>

#include <algorithm>

#include "device/device_context.h"
#include "device/resident_cache.h"
#include "device/torch_types.h"
#include "kvcache/host_kv_store.h"

namespace hybridgen {
namespace {

std::int64_t blocks_of(std::int64_t tokens) {
  return (tokens + kKeyBlockTokens - 1) / kKeyBlockTokens;
}

}  // namespace

PartialKeys::PartialKeys(const ModelConfig& config,
                         at::TensorOptions options,
                         const PartialKeyOptions& settings,
                         std::int64_t capacity)
    : settings_(settings),
      num_kv_heads_(config.num_kv_heads),
      query_heads_per_kv_head_(config.query_heads_per_kv_head()),
      head_dim_(config.head_dim),
      num_columns_(num_columns(config, settings)),
      columns_(at::empty({config.num_layers, num_kv_heads_, head_dim_, num_columns_},
                         options.dtype(at::kFloat))),
      has_columns_(static_cast<std::size_t>(config.num_layers)),
      keys_(at::empty(
          {config.num_layers, num_kv_heads_, blocks_of(capacity), num_columns_, kKeyBlockTokens},
          options)) {}

std::int64_t PartialKeys::num_columns(const ModelConfig& config,
                                      const PartialKeyOptions& settings) {
  return std::max<std::int64_t>(
      1, static_cast<std::int64_t>(settings.column_share * static_cast<double>(config.head_dim)));
}

std::int64_t PartialKeys::required_bytes(const ModelConfig& config,
                                         DType dtype,
                                         const PartialKeyOptions& settings,
                                         std::int64_t capacity) {
  const std::int64_t token_bytes =
      blocks_of(capacity) * kKeyBlockTokens * static_cast<std::int64_t>(size_of(dtype));
  const std::int64_t turning_bytes = config.head_dim * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t columns = num_columns(config, settings);
  return config.num_layers * config.num_kv_heads * columns * (token_bytes + turning_bytes) +
         columns * static_cast<std::int64_t>(sizeof(std::int64_t));
}

void PartialKeys::choose_columns(std::int64_t layer, const at::Tensor& queries) {
  const at::Tensor q = queries.to(at::kFloat)
                           .permute({1, 0, 2})
                           .reshape({num_kv_heads_, -1, head_dim_});  // [G, R T, D]
  // The right singular vectors of q are the eigenvectors of q^T q, which is small.
  const auto [values, vectors] = at::linalg_eigh(at::matmul(q.transpose(1, 2), q), "L");
  const at::Tensor weights = at::matmul(q, vectors).abs().sum(1);  // [G, D]
  const at::Tensor chosen = std::get<1>(at::topk(weights, num_columns_, -1));
  columns_.select(0, layer).copy_(
      vectors.gather(2, chosen.unsqueeze(1).expand({-1, head_dim_, -1})));
  has_columns_[static_cast<std::size_t>(layer)] = true;
}

void PartialKeys::on_prompt_rows(const PromptRows& rows) {
  if (!has_columns(rows.layer)) {
    choose_columns(rows.layer, rows.query);
  }
}

void PartialKeys::on_offload(const OffloadedRows& rows) {
  if (rows.layer == 0) {
    // A token that leaves in a decode step does so in all layers at a time: as few operations as
    // for one. More of them would need memory for all layers.
    const at::Tensor& resident = rows.resident.all_keys();
    leaves_all_layers_ = rows.tokens.size() == 1 && resident.defined() &&
                         rows.keys.is_alias_of(resident) &&
                         std::ranges::count(has_columns_, false) == 0;
    if (leaves_all_layers_) {
      write_blocks(resident.narrow(2, rows.first_row, 1).flatten(0, 1),
                   columns_.flatten(0, 1),
                   rows.tokens.begin,
                   keys_.flatten(0, 1));
    }
  }
  if (leaves_all_layers_) {
    return;
  }
  const at::Tensor keys = rows.keys.narrow(1, rows.first_row, rows.tokens.size());
  if (!has_columns(rows.layer)) {
    // No prompt chunk came before: the keys stand in for sample queries.
    choose_columns(rows.layer,
                   keys.permute({1, 0, 2}).repeat_interleave(query_heads_per_kv_head_, 1));
  }
  write(rows.layer, rows.tokens.begin, keys);
}

void PartialKeys::write(std::int64_t layer, std::int64_t first_slot, const at::Tensor& keys) {
  write_blocks(keys, columns_.select(0, layer), first_slot, keys_.select(0, layer));
}

void PartialKeys::write_blocks(const at::Tensor& keys,
                               const at::Tensor& columns,
                               std::int64_t first_slot,
                               const at::Tensor& blocks) {
  const at::Tensor partial =
      at::matmul(keys.to(at::kFloat), columns).transpose(1, 2);  // [G, rd, N]
  const std::int64_t count = partial.size(2);
  // The end of a block that is begun, whole blocks, the beginning of one.
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t from = (first_slot + done) % kKeyBlockTokens;
    const std::int64_t block = (first_slot + done) / kKeyBlockTokens;
    const std::int64_t whole = from == 0 ? (count - done) / kKeyBlockTokens : 0;
    if (whole > 0) {
      const std::int64_t tokens = whole * kKeyBlockTokens;
      blocks.narrow(1, block, whole)
          .copy_(partial.narrow(2, done, tokens)
                     .unflatten(2, {whole, kKeyBlockTokens})
                     .transpose(1, 2));
      done += tokens;
      continue;
    }
    const std::int64_t tokens = std::min(kKeyBlockTokens - from, count - done);
    blocks.select(1, block).narrow(2, from, tokens).copy_(partial.narrow(2, done, tokens));
    done += tokens;
  }
}

// Noted until the token's last head is known: then as few operations for all as for one.
void PartialKeys::on_replace(const ReplacedRow& row) {
  const std::int64_t num_heads = columns_.size(0) * num_kv_heads_;
  if (num_replacing_ == replaced_.size()) {
    replaced_.push_back(pinned_for(keys_.device(), {num_heads}, at::kLong));
  }
  const at::Tensor& first = replaced_[num_replacing_];
  const std::int64_t head = row.layer * num_kv_heads_ + row.kv_head;
  first.mutable_data_ptr<std::int64_t>()[head] =
      row.slot / kKeyBlockTokens * num_columns_ * kKeyBlockTokens + row.slot % kKeyBlockTokens;
  if (head + 1 < num_heads) {
    return;
  }
  if (!column_offsets_.defined()) {
    column_offsets_ =
        at::arange(num_columns_, keys_.options().dtype(at::kLong)).mul_(kKeyBlockTokens);
  }
  const at::Tensor keys = row.resident.all_keys().narrow(2, row.resident_slot, 1).flatten(0, 1);
  const at::Tensor partial = at::matmul(keys.to(at::kFloat), columns_.flatten(0, 1)).squeeze(1);
  const at::Tensor places =
      first.to(keys_.device(), /*non_blocking=*/true).unsqueeze(1) + column_offsets_;
  keys_.view({num_heads, -1}).scatter_(1, places, partial.to(keys_.scalar_type()));
  ++num_replacing_;
}

PlanItem PartialKeys::plan(std::int64_t num_tokens, std::optional<std::int64_t> count) const {
  PlanItem item{.columns = &columns_, .keys = &keys_, .num_tokens = num_tokens};
  if (count) {
    item.most = *count;
  } else {
    item.most = settings_.max_fetch.resolve(num_tokens);
    item.alpha = settings_.alpha;
  }
  return item;
}

PartFactory partial_keys_part(const PartialKeyOptions& settings) {
  return {.role = PartRole::kPlanner,
          .make =
              [settings](const PartContext& context) {
                const auto options = at::TensorOptions()
                                         .dtype(to_scalar_type(context.dtype))
                                         .device(context.device->device());
                return std::make_unique<PartialKeys>(
                    context.config, options, settings, context.max_offloaded);
              },
          .required_bytes =
              [settings](const PartContext& context) {
                return PartBytes{
                    .device = PartialKeys::required_bytes(
                        context.config, context.dtype, settings, context.max_offloaded),
                    .host = context.config.num_layers * context.config.num_kv_heads *
                            static_cast<std::int64_t>(sizeof(std::int64_t))};
              }};
}

}  // namespace hybridgen
