// SPDX-License-Identifier: Apache-2.0
#include "models/weights.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "device/device_context.h"
#include "device/torch_types.h"
#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

/// Where a tensor may begin: as HostTensors lays them.
std::int64_t round_up_to_line(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

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

Weights::Weights(const ModelConfig& config, DType dtype, at::Device device, WeightHomes homes)
    : options_(at::TensorOptions().dtype(to_scalar_type(dtype)).device(device)),
      homes_(std::move(homes)),
      query_rows_(config.num_heads * config.head_dim) {
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
  const std::int64_t in_memory = (device.is_cpu() ? bytes_ : 0) + streamed_.host_bytes;
  if (streamed_.has_disk() && !device.is_meta()) {
    streamed_.files = std::make_unique<WeightFiles>(
        homes_.reads_direct.value_or(streamed_.disk_bytes > available_host_bytes() - in_memory));
  }
  if (!device.is_meta()) held_ = HeldWeights(in_memory);
}

LayerWeights Weights::allocate_layer(const ModelConfig& config, const std::string& prefix) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t kv_rows = config.num_kv_heads * config.head_dim;
  const std::int64_t ffn = config.ffn_size;
  streamed_.layers.emplace_back();
  slot_end_ = 0;
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
  layer.qkv = allocate_projection({{LayerMatrix::kQuery, prefix + "q_proj", query_rows_},
                                   {LayerMatrix::kKey, prefix + "k_proj", kv_rows},
                                   {LayerMatrix::kValue, prefix + "v_proj", kv_rows}},
                                  hidden,
                                  config.qkv_bias);
  layer.query = layer.qkv.rows(0, query_rows_);
  if (config.qk_norm) {
    layer.query_norm_weight = allocate({config.head_dim});
    layer.key_norm_weight = allocate({config.head_dim});
    expect(prefix + "q_norm.weight", layer.query_norm_weight);
    expect(prefix + "k_norm.weight", layer.key_norm_weight);
  }
  layer.output = allocate_projection(
      {{LayerMatrix::kOutput, prefix + "o_proj", hidden}}, query_rows_, config.output_bias);
  norm("ffn_norm", layer.ffn_norm_weight, layer.ffn_norm_bias);
  std::vector<Matrix> up = {{LayerMatrix::kUp, prefix + "up_proj", ffn}};
  if (config.activation == Activation::kSiluGate) {
    up.insert(up.begin(), {LayerMatrix::kGate, prefix + "gate_proj", ffn});
  }
  layer.up = allocate_projection(up, hidden, config.ffn_bias);
  layer.down = allocate_projection(
      {{LayerMatrix::kDown, prefix + "down_proj", hidden}}, ffn, config.ffn_bias);
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

Projection Weights::allocate_projection(const std::vector<Matrix>& matrices,
                                        std::int64_t inputs,
                                        bool has_bias) {
  const auto is_resident = [this](const Matrix& matrix) {
    return homes_.layers[matrix.matrix] == WeightPlace::kDevice;
  };
  Projection projection;
  std::int64_t outputs = 0;
  for (auto first = matrices.begin(); first != matrices.end();) {
    const bool resident = is_resident(*first);
    const auto last = std::find_if(first, matrices.end(), [&](const Matrix& matrix) {
      return is_resident(matrix) != resident;
    });
    std::int64_t rows = 0;
    for (auto matrix = first; matrix != last; ++matrix) rows += matrix->rows;
    const at::Tensor part =
        resident ? allocate({rows, inputs}) : at::empty({rows, inputs}, options_.device(at::kMeta));
    const std::int64_t offset = round_up_to_line(slot_end_);
    if (!resident) slot_end_ = offset + static_cast<std::int64_t>(part.nbytes());
    projection.parts.emplace_back(part);
    outputs += rows;
    for (std::int64_t row = 0; first != last; ++first) {
      const at::Tensor own = part.narrow(0, row, first->rows);
      expect(first->name + ".weight", own);
      if (!resident) {
        slots_.at(first->name + ".weight").streamed = &add_streamed(first->matrix, own, offset);
      }
      row += first->rows;
    }
  }
  streamed_.slot_bytes = std::max(streamed_.slot_bytes, slot_end_);
  if (has_bias) {
    projection.bias = allocate({outputs});
    std::int64_t row = 0;
    for (const Matrix& matrix : matrices) {
      expect(matrix.name + ".bias", projection.bias.narrow(0, row, matrix.rows));
      row += matrix.rows;
    }
  }
  return projection;
}

StreamedTensor& Weights::add_streamed(LayerMatrix matrix,
                                      const at::Tensor& rows,
                                      std::int64_t part_offset) {
  const auto bytes = static_cast<std::int64_t>(rows.nbytes());
  StreamedTensor& tensor = streamed_.layers.back().emplace_back();
  tensor.is_query = matrix == LayerMatrix::kQuery;
  tensor.slot_offset = part_offset + rows.storage_offset() * rows.element_size();
  tensor.bytes = bytes;
  if (homes_.layers[matrix] == WeightPlace::kDisk) {
    streamed_.disk_bytes += bytes;
  } else {
    streamed_.host_bytes += bytes;
    if (!options_.device().is_meta()) {
      tensor.host = pinned_for(options_.device(), {bytes}, at::kByte);
    }
  }
  return tensor;
}

LayerWeights Weights::layer_in(std::int64_t layer, const at::Tensor& memory) const {
  LayerWeights weights = layers[static_cast<std::size_t>(layer)];
  std::int64_t end = 0;
  for (Projection* projection : {&weights.qkv, &weights.output, &weights.up, &weights.down}) {
    for (LinearWeight& part : projection->parts) {
      if (!part.dense.is_meta()) continue;
      const std::int64_t begin = round_up_to_line(end);
      const auto bytes = static_cast<std::int64_t>(part.dense.nbytes());
      part.dense =
          memory.narrow(0, begin, bytes).view(part.dense.scalar_type()).view(part.dense.sizes());
      end = begin + bytes;
    }
  }
  weights.query = weights.qkv.rows(0, query_rows_);
  return weights;
}

void Weights::expect(const std::string& name, const at::Tensor& destination) {
  order_.push_back(name);
  slots_[name] = Slot{.destination = destination};
}

std::vector<std::pair<std::string, std::vector<std::int64_t>>> Weights::expected_tensors() const {
  std::vector<std::pair<std::string, std::vector<std::int64_t>>> result;
  result.reserve(order_.size());
  for (const std::string& name : order_) {
    result.emplace_back(name, slots_.at(name).destination.sizes().vec());
  }
  return result;
}

const Weights::Slot& Weights::slot(const std::string& name) const {
  const auto found = slots_.find(name);
  if (found == slots_.end()) {
    throw CheckpointError(message("[load weights] tensor '",
                                  name,
                                  "' is not part of this model (",
                                  order_.size(),
                                  " tensors are expected); check the architecture"));
  }
  return found->second;
}

Weights::Slot& Weights::slot_to_load(const std::string& name) {
  Slot& found = const_cast<Slot&>(slot(name));  // of slots_, which is ours
  if (found.loaded) {
    throw CheckpointError(message("[load weights] tensor '", name, "' was given twice"));
  }
  return found;
}

void Weights::load_tensor(const std::string& name, const at::Tensor& tensor) {
  Slot& slot = slot_to_load(name);
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
  at::Tensor loaded = slot.destination;
  if (slot.streamed == nullptr) {
    loaded.copy_(tensor);
  } else {
    loaded = tensor.to(at::kCPU, options_.dtype().toScalarType()).contiguous();
  }
  // Checked after the conversion: a value may overflow float16.
  if (!is_finite(loaded)) {
    throw CheckpointError(message("[load weights] tensor '",
                                  name,
                                  "' holds NaN or infinity as ",
                                  c10::toString(loaded.scalar_type()),
                                  "; the file is damaged, or needs dtype='float32' or 'bfloat16'"));
  }
  if (slot.streamed != nullptr) store(*slot.streamed, loaded);
  slot.loaded = true;
}

bool Weights::is_on_disk(const std::string& name) const {
  const StreamedTensor* const streamed = slot(name).streamed;
  return streamed != nullptr && !streamed->host.defined();
}

void Weights::load_from_file(const std::string& name,
                             const std::string& path,
                             std::int64_t offset) {
  Slot& slot = slot_to_load(name);
  StreamedTensor& streamed = *slot.streamed;
  streamed.file_offset = streamed_.files->add(path, offset + streamed.bytes) + offset;
  slot.loaded = true;
}

void Weights::store(StreamedTensor& streamed, const at::Tensor& tensor) {
  const auto* const data = static_cast<const std::byte*>(tensor.const_data_ptr());
  const std::span<const std::byte> bytes(data, static_cast<std::size_t>(streamed.bytes));
  if (streamed.host.defined()) {
    std::ranges::copy(bytes, static_cast<std::byte*>(streamed.host.mutable_data_ptr()));
    return;
  }
  const std::string folder =
      homes_.folder.empty() ? std::filesystem::temp_directory_path().string() : homes_.folder;
  streamed.file_offset = streamed_.files->append(folder, bytes);
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
    } else if (slot.streamed == nullptr) {
      fill_dummy(slot.destination, pool, offset);
    } else {
      const at::Tensor dummy = at::empty(slot.destination.sizes(), options_.device(at::kCPU));
      fill_dummy(dummy, pool, offset);
      store(*slot.streamed, dummy);
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
