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
  const std::int64_t query_rows = config.num_heads * config.head_dim;
  const std::int64_t kv_rows = config.num_kv_heads * config.head_dim;
  const bool has_norm_bias = config.norm == NormKind::kLayer;
  const bool is_gated = config.activation == Activation::kSiluGate;

  embed_tokens = allocate({config.vocab_size, embedding});
  expect("embed_tokens.weight", embed_tokens);
  if (config.position == PositionKind::kLearned) {
    embed_positions = allocate({config.max_positions + config.position_offset, hidden});
    expect("embed_positions.weight", embed_positions);
  }
  if (embedding != hidden) {
    project_in = allocate({hidden, embedding});
    project_out = allocate({embedding, hidden});
    expect("project_in.weight", project_in);
    expect("project_out.weight", project_out);
  }
  layers.resize(static_cast<std::size_t>(config.num_layers));
  for (std::size_t i = 0; i < layers.size(); ++i) {
    LayerWeights& layer = layers[i];
    const std::string prefix = "layers." + std::to_string(i) + ".";
    const auto norm = [&](const std::string& name, at::Tensor& weight, at::Tensor& bias) {
      weight = allocate({hidden});
      expect(prefix + name + ".weight", weight);
      if (has_norm_bias) {
        bias = allocate({hidden});
        expect(prefix + name + ".bias", bias);
      }
    };
    norm("attention_norm", layer.attention_norm_weight, layer.attention_norm_bias);
    layer.qkv_weight = allocate({query_rows + 2 * kv_rows, hidden});
    layer.query_weight = layer.qkv_weight.narrow(0, 0, query_rows);
    expect(prefix + "q_proj.weight", layer.query_weight);
    expect(prefix + "k_proj.weight", layer.qkv_weight.narrow(0, query_rows, kv_rows));
    expect(prefix + "v_proj.weight", layer.qkv_weight.narrow(0, query_rows + kv_rows, kv_rows));
    if (config.qkv_bias) {
      layer.qkv_bias = allocate({query_rows + 2 * kv_rows});
      layer.query_bias = layer.qkv_bias.narrow(0, 0, query_rows);
      expect(prefix + "q_proj.bias", layer.query_bias);
      expect(prefix + "k_proj.bias", layer.qkv_bias.narrow(0, query_rows, kv_rows));
      expect(prefix + "v_proj.bias", layer.qkv_bias.narrow(0, query_rows + kv_rows, kv_rows));
    }
    layer.output_weight = allocate({hidden, query_rows});
    expect(prefix + "o_proj.weight", layer.output_weight);
    if (config.output_bias) {
      layer.output_bias = allocate({hidden});
      expect(prefix + "o_proj.bias", layer.output_bias);
    }
    norm("ffn_norm", layer.ffn_norm_weight, layer.ffn_norm_bias);
    const std::int64_t ffn = config.ffn_size;
    layer.up_weight = allocate({is_gated ? 2 * ffn : ffn, hidden});
    if (config.ffn_bias) {
      layer.up_bias = allocate({is_gated ? 2 * ffn : ffn});
    }
    const auto expect_rows = [&](const std::string& name, std::int64_t first) {
      expect(prefix + name + ".weight", layer.up_weight.narrow(0, first, ffn));
      if (config.ffn_bias) {
        expect(prefix + name + ".bias", layer.up_bias.narrow(0, first, ffn));
      }
    };
    if (is_gated) {
      expect_rows("gate_proj", 0);
      expect_rows("up_proj", ffn);
    } else {
      expect_rows("up_proj", 0);
    }
    layer.down_weight = allocate({hidden, ffn});
    expect(prefix + "down_proj.weight", layer.down_weight);
    if (config.ffn_bias) {
      layer.down_bias = allocate({hidden});
      expect(prefix + "down_proj.bias", layer.down_bias);
    }
  }
  if (config.final_norm) {
    final_norm_weight = allocate({hidden});
    expect("final_norm.weight", final_norm_weight);
    if (has_norm_bias) {
      final_norm_bias = allocate({hidden});
      expect("final_norm.bias", final_norm_bias);
    }
  }
  if (config.tie_embeddings) {
    lm_head = embed_tokens;
  } else {
    lm_head = allocate({config.vocab_size, embedding});
    expect("lm_head.weight", lm_head);
  }
  if (device.is_cpu()) held_ = HeldWeights(bytes_);
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
