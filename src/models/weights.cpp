// SPDX-License-Identifier: Apache-2.0
#include "models/weights.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
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

/// The tensors that it has, in a fixed order.
std::vector<at::Tensor*> tensors_of(LinearWeight& weight) {
  std::vector<at::Tensor*> tensors;
  for (at::Tensor* tensor : {&weight.dense, &weight.codes, &weight.scales, &weight.minima}) {
    if (tensor->defined()) tensors.push_back(tensor);
  }
  return tensors;
}

/// CheckpointError unless `from` can be copied to `to`: both or none are there, of one shape and
/// dtype, and finite.
void check_same(const char* part,
                const std::string& name,
                const at::Tensor& from,
                const at::Tensor& to) {
  const auto text = [](const at::Tensor& tensor) {
    return tensor.defined()
               ? message(c10::toString(tensor.scalar_type()), " ", shape_text(tensor.sizes()))
               : std::string("none");
  };
  const bool are_there = from.defined() && to.defined();
  if (from.defined() != to.defined() ||
      (are_there && (from.sizes() != to.sizes() || from.scalar_type() != to.scalar_type()))) {
    throw CheckpointError(message("[load weights] ",
                                  part,
                                  " of tensor '",
                                  name,
                                  "' are ",
                                  text(from),
                                  "; the configuration asks for ",
                                  text(to),
                                  "; check that config.json belongs to these weights"));
  }
  if (are_there && from.is_floating_point() && !is_finite(from.contiguous())) {
    throw CheckpointError(message("[load weights] ",
                                  part,
                                  " of tensor '",
                                  name,
                                  "' hold NaN or infinity; the file is damaged"));
  }
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
  const std::int64_t in_memory = (device.is_cpu() ? bytes_ : 0) + streamed_.host_bytes;
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
                                    shape_text(shape),
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
  LinearWeight weight =
      allocate_rows(coded_format(formats_, name, inputs), outputs, inputs, /*resident=*/true);
  expect(name, weight);
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
    const bool is_alone = !resident && options_.device().is_cpu();
    const auto last = std::find_if(std::next(first), matrices.end(), [&](const Matrix& matrix) {
      return is_alone || is_resident(matrix) != resident || format_of(matrix) != format;
    });
    std::int64_t rows = 0;
    for (auto matrix = first; matrix != last; ++matrix) rows += matrix->rows;
    LinearWeight part = allocate_rows(format, rows, inputs, resident);
    std::vector<std::int64_t> offsets;  // of a streamed part's tensors in its layer's memory
    for (const at::Tensor* tensor : tensors_of(part)) {
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
        slot.streamed.push_back(&add_streamed(first->matrix, *tensors_of(own)[i], offsets[i]));
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
      for (at::Tensor* tensor : tensors_of(part)) {
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

LayerWeights Weights::layer_in_files(std::int64_t layer) const {
  LayerWeights weights = layers[static_cast<std::size_t>(layer)];
  auto streamed = streamed_.layers[static_cast<std::size_t>(layer)].begin();
  for (Projection* projection : {&weights.qkv, &weights.output, &weights.up, &weights.down}) {
    for (LinearWeight& part : projection->parts) {
      for (at::Tensor* tensor : tensors_of(part)) {
        if (!tensor->is_meta()) continue;
        *tensor = at::from_blob(streamed_.files->address_of((streamed++)->file_offset),
                                tensor->sizes(),
                                tensor->options().device(at::kCPU));
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
  if (tensor.sizes() != at::IntArrayRef(slot.shape())) {
    throw CheckpointError(message("[load weights] tensor '",
                                  name,
                                  "' has shape ",
                                  shape_text(tensor.sizes()),
                                  "; the configuration asks for ",
                                  shape_text(slot.shape()),
                                  "; check that config.json belongs to these weights"));
  }
  if (slot.destination.is_coded()) {
    code(name, slot, tensor);
    slot.loaded = true;
    return;
  }
  at::Tensor loaded = slot.destination.dense;
  if (slot.streamed.empty()) {
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
  if (!slot.streamed.empty()) store(*slot.streamed.front(), loaded);
  slot.loaded = true;
}

void Weights::code(const std::string& name, Slot& slot, const at::Tensor& tensor) {
  LinearWeight coded = slot.destination;
  if (!slot.streamed.empty()) {
    for (at::Tensor* part : tensors_of(coded)) {
      *part = at::empty(part->sizes(), part->options().device(at::kCPU));
    }
  }
  if (!code_matrix(tensor, coded)) {
    throw CheckpointError(message("[load weights] tensor '",
                                  name,
                                  "' holds NaN, infinity, or numbers too large for scales of ",
                                  c10::toString(coded.scales.scalar_type()),
                                  "; the file is damaged, or needs another format of weights"));
  }
  for (std::size_t i = 0; i < slot.streamed.size(); ++i) {
    store(*slot.streamed[i], *tensors_of(coded)[i]);
  }
}

void Weights::load_coded(const std::string& name, const LinearWeight& coded) {
  Slot& slot = slot_to_load(name);
  const LinearWeight& own = slot.destination;
  if (!own.is_coded() || own.bits != coded.bits || own.group != coded.group) {
    throw CheckpointError(message(
        "[load weights] tensor '",
        name,
        "' has ",
        coded.bits,
        " bits in groups of ",
        coded.group,
        "; the model was made to hold ",
        own.is_coded() ? message(own.bits, " in groups of ", own.group) : std::string("numbers"),
        " there"));
  }
  check_same("codes", name, coded.codes, own.codes);
  check_same("scales", name, coded.scales, own.scales);
  check_same("minima", name, coded.minima, own.minima);
  LinearWeight from = coded;
  LinearWeight to = own;
  for (std::size_t i = 0; i < tensors_of(to).size(); ++i) {
    at::Tensor& tensor = *tensors_of(from)[i];
    if (slot.streamed.empty()) {
      tensors_of(to)[i]->copy_(tensor);
    } else {
      store(*slot.streamed[i], tensor.to(at::kCPU).contiguous());
    }
  }
  slot.loaded = true;
}

bool Weights::is_on_disk(const std::string& name) const {
  const Slot& found = slot(name);
  return !found.streamed.empty() && !found.destination.is_coded() &&
         !found.streamed.front()->host.defined();
}

void Weights::load_from_file(const std::string& name,
                             const std::string& path,
                             std::int64_t offset) {
  Slot& slot = slot_to_load(name);
  if (!is_on_disk(name)) {
    throw CheckpointError(message("[load weights] tensor '",
                                  name,
                                  "' is to be read out of ",
                                  path,
                                  "; allowed: tensors that lie on disk as numbers; load it"));
  }
  StreamedTensor& streamed = *slot.streamed.front();
  streamed.file_offset = streamed_.files->add(path, offset + streamed.bytes) + offset;
  slot.loaded = true;
  const at::Tensor& dense = slot.destination.dense;
  if (offset % dense.element_size() != 0 && options_.device().is_cpu()) {
    // The CPU, which may read it there, wants numbers at multiples of their size.
    const at::Tensor numbers = at::empty(dense.sizes(), dense.options().device(at::kCPU));
    const DiskRange range{.memory = static_cast<std::byte*>(numbers.mutable_data_ptr()),
                          .offset = streamed.file_offset,
                          .bytes = streamed.bytes};
    streamed_.files->read({&range, 1});
    store(streamed, numbers);
  }
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
      slot.destination.dense.fill_(1.0);
    } else if (name.ends_with(".bias")) {
      slot.destination.dense.zero_();
    } else if (slot.streamed.empty() && !slot.destination.is_coded()) {
      fill_dummy(slot.destination.dense, pool, offset);
    } else {
      const at::Tensor dummy = at::empty(slot.shape(), options_.device(at::kCPU));
      fill_dummy(dummy, pool, offset);
      if (slot.destination.is_coded()) {
        code(name, slot, dummy);
      } else {
        store(*slot.streamed.front(), dummy);
      }
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
