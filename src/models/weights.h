// SPDX-License-Identifier: Apache-2.0
// Weights of one decoder on its device. Projections that read the same input (q, k, v; gate, up)
// are one matrix where they can be, so that a decode step streams each layer in five passes. A
// checkpoint's tensors are copied into their slice one by one: nothing is held twice.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "device/host_tensors.h"
#include "device/linear_weight.h"
#include "hybridgen/core/model_config.h"
#include "memory/process_memory.h"

namespace hybridgen {

struct LayerWeights {
  at::Tensor attention_norm_weight, attention_norm_bias;  ///< [M]
  Projection qkv;                                         ///< [(H + 2 G) D, M]
  Projection query;                                       ///< a view of its first H D rows
  Projection output;                                      ///< [M, H D]
  at::Tensor ffn_norm_weight, ffn_norm_bias;              ///< [M]
  Projection up;    ///< [F, M], or gate above up [2 F, M] for gated FFNs
  Projection down;  ///< [M, F]
};

class Weights {
 public:
  /// Allocates everything, uninitialised. Throws OutOfMemoryError naming the bytes needed.
  Weights(const ModelConfig& config, DType dtype, at::Device device);

  /// Canonical names and shapes, in a fixed order. Weights with bias flags off have no bias entry.
  std::vector<std::pair<std::string, std::vector<std::int64_t>>> expected_tensors() const;

  /// Copies one tensor (any floating dtype, any device) into its place. CheckpointError for an
  /// unknown name, a wrong shape, NaN or infinity, a non-floating dtype, or a second load.
  void load_tensor(const std::string& name, const at::Tensor& tensor);

  /// Gaussian weights of std 0.02 (norms 1, biases 0), seeded: for shapes without a checkpoint.
  void load_dummy(std::uint64_t seed);

  /// CheckpointError listing every tensor that was not loaded.
  void finish() const;

  std::int64_t bytes() const { return bytes_; }

  LinearWeight embed_tokens;     ///< [V, E]
  LinearWeight embed_positions;  ///< [positions + offset, M]; learned positions only
  LinearWeight project_in;       ///< [M, E]; only where E != M
  LinearWeight project_out;      ///< [E, M]
  at::Tensor final_norm_weight, final_norm_bias;
  LinearWeight lm_head;  ///< [V, E]; embed_tokens itself when tied
  std::vector<LayerWeights> layers;

 private:
  struct Slot {
    at::Tensor destination;
    bool loaded = false;
  };
  at::Tensor allocate(std::vector<std::int64_t> shape);
  LinearWeight allocate_linear(std::int64_t outputs, std::int64_t inputs);
  Projection allocate_projection(std::int64_t outputs, std::int64_t inputs, bool has_bias);
  void expect(const std::string& name, const at::Tensor& destination);
  /// The tensors `name`.weight and, where there is one, `name`.bias of some rows of a projection.
  void expect(const std::string& name, const Projection& rows);
  LayerWeights allocate_layer(const ModelConfig& config, const std::string& prefix);

  at::TensorOptions options_;
  HostTensors host_tensors_;  ///< of a CPU device
  std::vector<std::string> order_;
  std::map<std::string, Slot> slots_;
  std::int64_t bytes_ = 0;
  HeldWeights held_;  ///< of host memory
};

}  // namespace hybridgen
