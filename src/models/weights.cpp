// SPDX-License-Identifier: Apache-2.0
#include "models/weights.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>

#include <algorithm>

#include "device/torch_types.h"
#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

std::string shape_text(at::IntArrayRef shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

bool is_loadable(at::ScalarType type) {
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16 || type == at::kDouble;
}

// In pieces: the comparison makes temporaries as large as its input, and embeddings are large.
bool is_finite(const at::Tensor& tensor) {
  constexpr std::int64_t kPiece = 1 << 20;
  const at::Tensor flat = tensor.view({-1});
  for (std::int64_t first = 0; first < flat.numel(); first += kPiece) {
    const std::int64_t count = std::min(kPiece, flat.numel() - first);
    if (!at::isfinite(flat.narrow(0, first, count)).all().item<bool>()) {
      return false;
    }
  }
  return true;
}

// A pool of normal numbers, laid out again and again from shifting offsets: drawing each number of
// a large model would take minutes and nothing depends on their independence.
void fill_dummy(const at::Tensor& destination, const at::Tensor& pool, std::int64_t& offset) {
  const at::Tensor flat = destination.view({-1});
  std::int64_t filled = 0;
  while (filled < flat.numel()) {
    const std::int64_t count = std::min(flat.numel() - filled, pool.numel() - offset);
    flat.narrow(0, filled, count).copy_(pool.narrow(0, offset, count));
    filled += count;
    offset = (offset + count + 7919) % (pool.numel() / 2);
  }
}

}  // namespace

Weights::Weights(const ModelConfig& config, DType dtype, at::Device device)
    : options_(at::TensorOptions().dtype(to_scalar_type(dtype)).device(device)) {
  config.validate();
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t embedding = config.embedding_size;

  embed_tokens = allocate_linear(config.vocab_size, embedding);
  expect("embed_tokens.weight", embed_tokens.dense);
  if (config.position == PositionKind::kLearned) {
    embed_positions = allocate_linear(config.max_positions + config.position_offset, hidden);
    expect("embed_positions.weight", embed_positions.dense);
  }
  if (embedding != hidden) {
    project_in = allocate_linear(hidden, embedding);
    project_out = allocate_linear(embedding, hidden);
    expect("project_in.weight", project_in.dense);
    expect("project_out.weight", project_out.dense);
  }
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    layers.push_back(allocate_layer(config, "layers." + std::to_string(i) + "."));
  }
  if (config.final_norm) {
    final_norm_weight = allocate({hidden});
    expect("final_norm.weight", final_norm_weight);
    if (config.norm == NormKind::kLayer) {
      final_norm_bias = allocate({hidden});
      expect("final_norm.bias", final_norm_bias);
    }
  }
  if (config.tie_embeddings) {
    lm_head = embed_tokens;
  } else {
    lm_head = allocate_linear(config.vocab_size, embedding);
    expect("lm_head.weight", lm_head.dense);
  }
  if (device.is_cpu()) held_ = HeldWeights(bytes_);
}

LayerWeights Weights::allocate_layer(const ModelConfig& config, const std::string& prefix) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t query_rows = config.num_heads * config.head_dim;
  const std::int64_t kv_rows = config.num_kv_heads * config.head_dim;
  const std::int64_t ffn = config.ffn_size;
  LayerWeights layer;
  const auto norm = [&](const std::string& name, at::Tensor& weight, at::Tensor& bias) {
    weight = allocate({hidden});
    expect(prefix + name + ".weight", weight);
    if (config.norm == NormKind::kLayer) {
      bias = allocate({hidden});
      expect(prefix + name + ".bias", bias);
    }
  };
  norm("attention_norm", layer.attention_norm_weight, layer.attention_norm_bias);
  layer.qkv = allocate_projection(query_rows + 2 * kv_rows, hidden, config.qkv_bias);
  layer.query = layer.qkv.rows(0, query_rows);
  expect(prefix + "q_proj", layer.query);
  expect(prefix + "k_proj", layer.qkv.rows(query_rows, kv_rows));
  expect(prefix + "v_proj", layer.qkv.rows(query_rows + kv_rows, kv_rows));
  layer.output = allocate_projection(hidden, query_rows, config.output_bias);
  expect(prefix + "o_proj", layer.output);
  norm("ffn_norm", layer.ffn_norm_weight, layer.ffn_norm_bias);
  const bool is_gated = config.activation == Activation::kSiluGate;
  layer.up = allocate_projection(is_gated ? 2 * ffn : ffn, hidden, config.ffn_bias);
  if (is_gated) {
    expect(prefix + "gate_proj", layer.up.rows(0, ffn));
    expect(prefix + "up_proj", layer.up.rows(ffn, ffn));
  } else {
    expect(prefix + "up_proj", layer.up);
  }
  layer.down = allocate_projection(hidden, ffn, config.ffn_bias);
  expect(prefix + "down_proj", layer.down);
  return layer;
}

at::Tensor Weights::allocate(std::vector<std::int64_t> shape) {
  const auto refused = [&](const char* why) {
    return OutOfMemoryError(message("[load weights] a tensor of shape ",
                                    shape_text(shape),
                                    " does not fit after ",
                                    human_bytes(static_cast<double>(bytes_)),
                                    " of weights: ",
                                    why,
                                    "; use a smaller model or dtype='bfloat16'"));
  };
  try {
    at::Tensor tensor = options_.device().is_cpu() ? host_tensors_.allocate(shape, options_)
                                                   : at::empty(shape, options_);
    bytes_ += static_cast<std::int64_t>(tensor.nbytes());
    return tensor;
  } catch (const c10::Error& error) {
    throw refused(error.what_without_backtrace());
  } catch (const OutOfMemoryError& error) {
    throw refused(error.what());
  }
}

LinearWeight Weights::allocate_linear(std::int64_t outputs, std::int64_t inputs) {
  return LinearWeight(allocate({outputs, inputs}));
}

Projection Weights::allocate_projection(std::int64_t outputs, std::int64_t inputs, bool has_bias) {
  Projection projection;
  projection.parts.push_back(allocate_linear(outputs, inputs));
  if (has_bias) projection.bias = allocate({outputs});
  return projection;
}

void Weights::expect(const std::string& name, const Projection& rows) {
  expect(name + ".weight", rows.parts.front().dense);
  if (rows.bias.defined()) expect(name + ".bias", rows.bias);
}

void Weights::expect(const std::string& name, const at::Tensor& destination) {
  order_.push_back(name);
  slots_[name] = Slot{destination, false};
}

std::vector<std::pair<std::string, std::vector<std::int64_t>>> Weights::expected_tensors() const {
  std::vector<std::pair<std::string, std::vector<std::int64_t>>> result;
  result.reserve(order_.size());
  for (const std::string& name : order_) {
    result.emplace_back(name, slots_.at(name).destination.sizes().vec());
  }
  return result;
}

void Weights::load_tensor(const std::string& name, const at::Tensor& tensor) {
  const auto found = slots_.find(name);
  if (found == slots_.end()) {
    throw CheckpointError(message("[load weights] tensor '",
                                  name,
                                  "' is not part of this model (",
                                  order_.size(),
                                  " tensors are expected); check the architecture"));
  }
  Slot& slot = found->second;
  if (slot.loaded) {
    throw CheckpointError(message("[load weights] tensor '", name, "' was given twice"));
  }
  if (!is_loadable(tensor.scalar_type())) {
    throw CheckpointError(message("[load weights] tensor '",
                                  name,
                                  "' has dtype ",
                                  c10::toString(tensor.scalar_type()),
                                  "; allowed: float32, float16, bfloat16, float64"));
  }
  if (tensor.sizes() != slot.destination.sizes()) {
    throw CheckpointError(message("[load weights] tensor '",
                                  name,
                                  "' has shape ",
                                  shape_text(tensor.sizes()),
                                  "; the configuration asks for ",
                                  shape_text(slot.destination.sizes()),
                                  "; check that config.json belongs to these weights"));
  }
  slot.destination.copy_(tensor);
  // Checked after the conversion: a value may overflow float16.
  if (!is_finite(slot.destination)) {
    throw CheckpointError(message("[load weights] tensor '",
                                  name,
                                  "' holds NaN or infinity as ",
                                  c10::toString(slot.destination.scalar_type()),
                                  "; the file is damaged, or needs dtype='float32' or 'bfloat16'"));
  }
  slot.loaded = true;
}

void Weights::load_dummy(std::uint64_t seed) {
  constexpr std::int64_t kPoolSize = 1 << 20;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const at::Tensor pool =
      at::empty({kPoolSize}, at::kFloat).normal_(0.0, 0.02, generator).to(options_.dtype());
  std::int64_t offset = 0;
  for (const std::string& name : order_) {
    Slot& slot = slots_.at(name);
    if (name.ends_with("norm.weight")) {
      slot.destination.fill_(1.0);
    } else if (name.ends_with(".bias")) {
      slot.destination.zero_();
    } else {
      fill_dummy(slot.destination, pool, offset);
    }
    slot.loaded = true;
  }
}

void Weights::finish() const {
  std::string missing;
  std::size_t count = 0;
  for (const std::string& name : order_) {
    if (!slots_.at(name).loaded) {
      missing += (count++ == 0 ? "" : ", ") + name;
    }
  }
  if (count > 0) {
    throw CheckpointError(message("[load weights] ",
                                  count,
                                  " of ",
                                  order_.size(),
                                  " tensors are missing: ",
                                  missing,
                                  "; the checkpoint is incomplete"));
  }
}

}  // namespace hybridgen
