// SPDX-License-Identifier: Apache-2.0
#include "models/decoder_model.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <utility>

#include "device/torch_types.h"

namespace hybridgen {

BlockWorkspace::BlockWorkspace(const ModelConfig& config,
                               DType dtype,
                               at::Device device,
                               std::int64_t num_rows)
    : rows(num_rows) {
  const auto options = at::TensorOptions().dtype(to_scalar_type(dtype)).device(device);
  const std::int64_t heads = config.num_heads;
  const std::int64_t groups = config.num_kv_heads;
  const std::int64_t head_dim = config.head_dim;
  const bool is_gated = config.activation == Activation::kSiluGate;
  positions = at::empty({rows}, options.dtype(at::kLong));
  x = at::empty({rows, config.hidden_size}, options);
  normed = at::empty_like(x);
  projected = at::empty_like(x);
  if (config.embedding_size != config.hidden_size) {
    embedding = at::empty({rows, config.embedding_size}, options);
  }
  qkv = at::empty({rows, (heads + 2 * groups) * head_dim}, options);
  query = qkv.narrow(1, 0, heads * head_dim).view({rows, heads, head_dim});
  key = qkv.narrow(1, heads * head_dim, groups * head_dim).view({rows, groups, head_dim});
  value =
      qkv.narrow(1, (heads + groups) * head_dim, groups * head_dim).view({rows, groups, head_dim});
  guess = at::empty({rows, heads * head_dim}, options);
  guess_heads = guess.view({rows, heads, head_dim});
  attended = at::empty({rows, heads * head_dim}, options);
  attended_heads = attended.view({rows, heads, head_dim});
  up = at::empty({rows, is_gated ? 2 * config.ffn_size : config.ffn_size}, options);
  if (is_gated) {
    gate_half = up.narrow(1, 0, config.ffn_size);
    up_half = up.narrow(1, config.ffn_size, config.ffn_size);
    ffn = at::empty({rows, config.ffn_size}, options);
  } else {
    ffn = up;
  }
}

void BlockWorkspace::add_guess_norm() { guess_normed = at::empty_like(x); }

std::int64_t BlockWorkspace::required_bytes(const ModelConfig& config,
                                            DType dtype,
                                            std::int64_t rows) {
  const std::int64_t attended = config.num_heads * config.head_dim;
  const std::int64_t elements =
      3 * config.hidden_size +
      (config.embedding_size != config.hidden_size ? config.embedding_size : 0) +
      (attended + 2 * config.num_kv_heads * config.head_dim) + 2 * attended +
      (config.activation == Activation::kSiluGate ? 3 : 1) * config.ffn_size;
  return rows * (elements * static_cast<std::int64_t>(size_of(dtype)) +
                 static_cast<std::int64_t>(sizeof(std::int64_t)));
}

BlockWorkspace BlockWorkspace::first_rows(std::int64_t count) const {
  BlockWorkspace part = *this;
  part.rows = count;
  for (at::Tensor* tensor : {&part.positions,
                             &part.x,
                             &part.normed,
                             &part.guess_normed,
                             &part.embedding,
                             &part.qkv,
                             &part.query,
                             &part.key,
                             &part.value,
                             &part.guess,
                             &part.guess_heads,
                             &part.attended,
                             &part.projected,
                             &part.attended_heads,
                             &part.up,
                             &part.gate_half,
                             &part.up_half,
                             &part.ffn}) {
    if (tensor->defined()) *tensor = tensor->narrow(0, 0, count);
  }
  return part;
}

BlockWorkspace BlockWorkspace::beside(std::int64_t count) const {
  BlockWorkspace part = first_rows(count);
  part.positions = at::empty_like(part.positions);
  part.x = at::empty_like(part.x);
  return part;
}

DecoderModel::DecoderModel(const ModelConfig& config,
                           DType dtype,
                           const std::string& device,
                           WeightHomes homes,
                           WeightFormats formats)
    : config_(config),
      dtype_(dtype),
      device_(device),
      weights_(config_, dtype, device_.device(), std::move(homes), std::move(formats)) {}

void DecoderModel::prepare_positions(std::int64_t positions) {
  const std::int64_t wanted = std::min(positions, config_.max_positions);
  const std::scoped_lock lock(rope_mutex_);
  if (wanted > rope_positions_) {
    // At least doubled, so that ever longer requests do not build it again each time.
    const std::int64_t grown = std::max({wanted, 2 * rope_positions_, kFirstPositions});
    const std::int64_t count = std::min(grown, config_.max_positions);
    // On the stream that reads it: in order with the kernels that do, and with the reuse of the old
    // table's memory.
    const auto compute = device_.use_compute();
    rope_ = build_rope_table(config_, count, device_.device());
    rope_positions_ = count;
  }
}

RopeTable DecoderModel::step_rope() const {
  const std::scoped_lock lock(rope_mutex_);
  return rope_;
}

RopeTable DecoderModel::prompt_rope(std::int64_t length) const {
  return config_.rope_scaling.depends_on_length(length)
             ? build_prompt_rope_table(config_, 0, length, length, device_.device())
             : step_rope();
}

std::optional<Rotation> DecoderModel::prompt_rotation(std::int64_t first,
                                                      std::int64_t count,
                                                      std::int64_t length) const {
  if (config_.position != PositionKind::kRotary ||
      !config_.rope_scaling.depends_on_length(length)) {
    return std::nullopt;
  }
  const at::TensorOptions options = at::TensorOptions().dtype(at::kLong).device(device_.device());
  return Rotation{build_prompt_rope_table(config_, first, count, length, device_.device()),
                  at::arange(count, options)};
}

Rotation DecoderModel::rotation_of(const BlockWorkspace& ws) const {
  return ws.rotation ? *ws.rotation : Rotation{step_rope(), ws.positions};
}

void DecoderModel::embed(const DeviceOps& ops, const at::Tensor& tokens, BlockWorkspace& ws) const {
  if (weights_.project_in.defined()) {
    ops.select_rows(weights_.embed_tokens, tokens, 0, ws.embedding);
    ops.linear(ws.embedding, weights_.project_in, {}, ws.x);
  } else {
    ops.select_rows(weights_.embed_tokens, tokens, 0, ws.x);
  }
  if (config_.position == PositionKind::kLearned) {
    ops.select_rows(weights_.embed_positions, ws.positions, config_.position_offset, ws.projected);
    ops.add(ws.x, ws.projected);
  }
}

const at::Tensor& DecoderModel::attention_input(const DeviceOps& ops,
                                                const LayerWeights& weights,
                                                BlockWorkspace& ws) const {
  if (!config_.pre_norm) {
    return ws.x;
  }
  if (std::exchange(ws.is_normed, false)) {
    return ws.normed;
  }
  return normed(ops, weights.attention_norm_weight, weights.attention_norm_bias, ws);
}

const at::Tensor& DecoderModel::guess_input(const DeviceOps& ops,
                                            const LayerWeights& norm_layer,
                                            const LayerWeights* own,
                                            BlockWorkspace& ws) const {
  if (own == nullptr || !config_.pre_norm) {
    return attention_input(ops, norm_layer, ws);
  }
  const NormTarget guess{
      norm_layer.attention_norm_weight, norm_layer.attention_norm_bias, ws.guess_normed};
  const bool is_same = own == &norm_layer;
  normed(ops, own->attention_norm_weight, own->attention_norm_bias, ws, is_same ? nullptr : &guess);
  ws.is_normed = true;
  return is_same ? ws.normed : ws.guess_normed;
}

const at::Tensor& DecoderModel::normed(const DeviceOps& ops,
                                       const at::Tensor& weight,
                                       const at::Tensor& bias,
                                       BlockWorkspace& ws,
                                       const NormTarget* second) const {
  const bool adds = std::exchange(ws.lacks_projected, false);
  ops.norms(config_, ws.x, adds ? ws.projected : at::Tensor(), {weight, bias, ws.normed}, second);
  return ws.normed;
}

void DecoderModel::place(const DeviceOps& ops,
                         const LayerWeights& weights,
                         LayerHeads heads,
                         const AttentionBatch* batch,
                         const BlockWorkspace& ws) const {
  if (config_.qk_norm) {
    heads.query_norm = &weights.query_norm_weight;
    heads.key_norm = &weights.key_norm_weight;
  }
  std::optional<Rotation> rotation;
  if (config_.position == PositionKind::kRotary) {
    rotation = rotation_of(ws);
    heads.table = &rotation->table;
    heads.rotation_rows = rotation->rows;
  }
  ops.place_heads(config_, heads, batch);
}

void DecoderModel::project_query(const DeviceOps& ops,
                                 const LayerWeights& layer,
                                 const LayerWeights& norm_layer,
                                 const LayerWeights* own,
                                 BlockWorkspace& ws) const {
  ops.project(guess_input(ops, norm_layer, own, ws), layer.query, ws.guess);
  place(ops, layer, {.query = ws.guess_heads}, nullptr, ws);
}

void DecoderModel::attention_inputs(const DeviceOps& ops,
                                    const LayerWeights& layer,
                                    BlockWorkspace& ws,
                                    bool rotate_key,
                                    const AttentionBatch* batch) const {
  ops.project(attention_input(ops, layer, ws), layer.qkv, ws.qkv);
  place(ops,
        layer,
        {.query = ws.query, .key = &ws.key, .value = &ws.value, .rotates_key = rotate_key},
        batch,
        ws);
}

void rotate_keys(const DeviceOps& ops,
                 const RopeTable& table,
                 const at::Tensor& places,
                 at::Tensor& keys) {
  for (std::int64_t g = 0; g < keys.size(0); ++g) {
    at::Tensor rows = keys.select(0, g).narrow(0, 0, places.size(0)).unsqueeze(1);
    ops.rotate(table, places, rows);
  }
}

void DecoderModel::attention_output(const DeviceOps& ops,
                                    const LayerWeights& layer,
                                    BlockWorkspace& ws) const {
  ops.project(ws.attended, layer.output, ws.projected);
  if (config_.pre_norm) {
    ws.lacks_projected = true;  // until feed_forward()
    return;
  }
  ops.add(ws.x, ws.projected);
  ops.norm(config_, ws.x, layer.attention_norm_weight, layer.attention_norm_bias, ws.x);
}

void DecoderModel::feed_forward(const DeviceOps& ops,
                                const LayerWeights& layer,
                                BlockWorkspace& ws,
                                bool may_wait) const {
  const at::Tensor& input =
      config_.pre_norm ? normed(ops, layer.ffn_norm_weight, layer.ffn_norm_bias, ws) : ws.x;
  ops.project(input, layer.up, ws.up);
  if (config_.activation == Activation::kSiluGate) {
    ops.silu_gate(ws.gate_half, ws.up_half, ws.ffn);
  } else {
    ops.relu(ws.ffn);
  }
  ops.project(ws.ffn, layer.down, ws.projected);
  if (config_.pre_norm && may_wait) {
    ws.lacks_projected = true;
    return;
  }
  ops.add(ws.x, ws.projected);
  if (!config_.pre_norm) {
    ops.norm(config_, ws.x, layer.ffn_norm_weight, layer.ffn_norm_bias, ws.x);
  }
}

void DecoderModel::head(const DeviceOps& ops, BlockWorkspace& ws, at::Tensor& logits) const {
  const at::Tensor* input = &ws.x;
  if (config_.final_norm) {
    input = &normed(ops, weights_.final_norm_weight, weights_.final_norm_bias, ws);
  } else if (ws.lacks_projected) {
    ops.add(ws.x, ws.projected);
    ws.lacks_projected = false;
  }
  if (weights_.project_out.defined()) {
    ops.linear(*input, weights_.project_out, {}, ws.embedding);
    input = &ws.embedding;
  }
  ops.linear(*input, weights_.lm_head, {}, logits);
}

}  // namespace hybridgen
