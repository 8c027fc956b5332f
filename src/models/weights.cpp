// SPDX-License-Identifier: Apache-2.0
#include "models/weights.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <utility>

#include "device/device_context.h"
#include "device/torch_types.h"
#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

/// Where a tensor may begin: as HostTensors lays them.
std::int64_t round_up_to_line(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

Weights::Weights(const ModelConfig& config,
                 DType dtype,
                 at::Device device,
                 WeightHomes homes,
                 WeightFormats formats)
    : options_(at::TensorOptions().dtype(to_scalar_type(dtype)).device(device)),
      homes_(std::move(homes)),
      formats_(std::move(formats)),
      query_rows_(config.num_heads * config.head_dim) {
  config.validate();
  check_formats(formats_.made, config);
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t embedding = config.embedding_size;

  embed_tokens = allocate_linear("embed_tokens.weight", config.vocab_size, embedding);
  if (config.position == PositionKind::kLearned) {
    embed_positions = allocate_linear(
        "embed_positions.weight", config.max_positions + config.position_offset, hidden);
  }
  if (embedding != hidden) {
    project_in = allocate_linear("project_in.weight", hidden, embedding);
    project_out = allocate_linear("project_out.weight", embedding, hidden);
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
    lm_head = allocate_linear("lm_head.weight", config.vocab_size, embedding);
  }
  streamed_.stays = homes_.are_shared;
  // What is to stay is not for others, though the system counts the page cache as free.
  const std::int64_t in_memory = (device.is_cpu() ? device_bytes() : 0) + streamed_.host_bytes;
  if (streamed_.has_disk()) {
    const std::int64_t planned = device.is_meta() ? bytes_ : in_memory;
    streamed_.is_direct =
        homes_.reads_direct.value_or(streamed_.disk_bytes > available_host_bytes() - planned);
    if (!device.is_meta()) streamed_.files = std::make_unique<WeightFiles>(streamed_.is_direct);
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
  return allocate(std::move(shape), options_.dtype().toScalarType());
}

at::Tensor Weights::allocate(std::vector<std::int64_t> shape, at::ScalarType type) {
  const at::TensorOptions options = options_.dtype(type);
  const auto refused = [&](const char* why) {
    return OutOfMemoryError(message("[load weights] a tensor of shape ",
                                    at::IntArrayRef(shape),
                                    " does not fit after ",
                                    human_bytes(static_cast<double>(bytes_)),
                                    " of weights: ",
                                    why,
                                    "; use a smaller model, dtype='bfloat16' or "
                                    "weights=WeightConfig(format='int8')"));
  };
  try {
    at::Tensor tensor = options_.device().is_cpu() ? host_tensors_.allocate(shape, options)
                                                   : at::empty(shape, options);
    bytes_ += static_cast<std::int64_t>(tensor.nbytes());
    return tensor;
  } catch (const c10::Error& error) {
    throw refused(error.what_without_backtrace());
  } catch (const OutOfMemoryError& error) {
    throw refused(error.what());
  }
}

LinearWeight Weights::allocate_rows(const std::optional<kernels::CodedFormat>& format,
                                    std::int64_t outputs,
                                    std::int64_t inputs,
                                    bool resident) {
  const auto allocated = [&](std::vector<std::int64_t> shape, at::ScalarType type) {
    return resident ? allocate(std::move(shape), type)
                    : at::empty(shape, options_.device(at::kMeta).dtype(type));
  };
  if (format) return allocate_coded(*format, outputs, inputs, allocated);
  return LinearWeight(allocated({outputs, inputs}, options_.dtype().toScalarType()));
}

LinearWeight Weights::allocate_linear(const std::string& name,
                                      std::int64_t outputs,
                                      std::int64_t inputs) {
  const bool resident = !homes_.are_shared;
  LinearWeight weight =
      allocate_rows(coded_format(formats_, name, inputs), outputs, inputs, resident);
  expect(name, weight);
  for (const at::Tensor* tensor : weight.tensors()) {
    if (resident) break;
    const auto bytes = static_cast<std::int64_t>(tensor->nbytes());
    slots_.at(name).streamed.push_back(
        &streamed_.tables.emplace_back(StreamedTensor{.bytes = bytes}));
    streamed_.disk_bytes += bytes;
  }
  return weight;
}

Projection Weights::allocate_projection(const std::vector<Matrix>& matrices,
                                        std::int64_t inputs,
                                        bool has_bias) {
  const auto is_resident = [this](const Matrix& matrix) {
    return homes_.layers[matrix.matrix] == WeightPlace::kDevice;
  };
  const auto format_of = [&](const Matrix& matrix) {
    return coded_format(formats_, matrix.name + ".weight", inputs);
  };
  Projection projection;
  std::int64_t outputs = 0;
  for (auto first = matrices.begin(); first != matrices.end();) {
    const bool resident = is_resident(*first);
    const std::optional<kernels::CodedFormat> format = format_of(*first);
    // What the CPU reads where its file has it is by itself there.
    const bool is_alone = !resident && (options_.device().is_cpu() || homes_.device_is_host);
    const auto last = std::find_if(std::next(first), matrices.end(), [&](const Matrix& matrix) {
      return is_alone || is_resident(matrix) != resident || format_of(matrix) != format;
    });
    std::int64_t rows = 0;
    for (auto matrix = first; matrix != last; ++matrix) rows += matrix->rows;
    LinearWeight part = allocate_rows(format, rows, inputs, resident);
    std::vector<std::int64_t> offsets;  // of a streamed part's tensors in its layer's memory
    for (const at::Tensor* tensor : part.tensors()) {
      if (resident) continue;
      offsets.push_back(round_up_to_line(slot_end_));
      slot_end_ = offsets.back() + static_cast<std::int64_t>(tensor->nbytes());
    }
    projection.parts.push_back(part);
    outputs += rows;
    for (std::int64_t row = 0; first != last; ++first) {
      LinearWeight own = part.rows(row, first->rows);
      expect(first->name + ".weight", own);
      Slot& slot = slots_.at(first->name + ".weight");
      for (std::size_t i = 0; i < offsets.size(); ++i) {
        slot.streamed.push_back(&add_streamed(first->matrix, *own.tensors()[i], offsets[i]));
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
      for (at::Tensor* tensor : part.tensors()) {
        if (!tensor->is_meta()) continue;
        const std::int64_t begin = round_up_to_line(end);
        const auto bytes = static_cast<std::int64_t>(tensor->nbytes());
        *tensor = memory.narrow(0, begin, bytes).view(tensor->scalar_type()).view(tensor->sizes());
        end = begin + bytes;
      }
    }
  }
  weights.query = weights.qkv.rows(0, query_rows_);
  return weights;
}

at::Tensor Weights::in_file(const StreamedTensor& streamed, const at::Tensor& like) const {
  return at::from_blob(streamed_.files->address_of(streamed.file_offset),
                       like.sizes(),
                       like.options().device(at::kCPU));
}

LayerWeights Weights::layer_in_files(std::int64_t layer) const {
  LayerWeights weights = layers[static_cast<std::size_t>(layer)];
  auto streamed = streamed_.layers[static_cast<std::size_t>(layer)].begin();
  for (Projection* projection : {&weights.qkv, &weights.output, &weights.up, &weights.down}) {
    for (LinearWeight& part : projection->parts) {
      for (at::Tensor* tensor : part.tensors()) {
        if (tensor->is_meta()) *tensor = in_file(*streamed++, *tensor);
      }
    }
  }
  weights.query = weights.qkv.rows(0, query_rows_);
  return weights;
}

std::vector<std::int64_t> Weights::Slot::shape() const {
  if (!destination.is_coded()) return destination.dense.sizes().vec();
  return {destination.outputs(), destination.inputs};
}

void Weights::expect(const std::string& name, const at::Tensor& destination) {
  LinearWeight dense;
  dense.dense = destination;
  expect(name, dense);
}

void Weights::expect(const std::string& name, const LinearWeight& destination) {
  order_.push_back(name);
  slots_[name] = Slot{.destination = destination};
}

std::vector<std::pair<std::string, std::vector<std::int64_t>>> Weights::expected_tensors() const {
  std::vector<std::pair<std::string, std::vector<std::int64_t>>> result;
  result.reserve(order_.size());
  for (const std::string& name : order_) {
    result.emplace_back(name, slots_.at(name).shape());
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

}  // namespace hybridgen
