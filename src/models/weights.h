// SPDX-License-Identifier: Apache-2.0
// Weights of one decoder on its device. Projections that read the same input (q, k, v; gate, up)
// are one matrix where they can be, so that a decode step streams each layer in five passes. A
// checkpoint's tensors are copied, or coded (weight_coding.h), into their slice one by one: nothing
// is held twice.
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "device/host_tensors.h"
#include "device/linear_weight.h"
#include "hybridgen/core/model_config.h"
#include "memory/process_memory.h"
#include "memory/weight_files.h"
#include "models/weight_coding.h"
#include "models/weight_places.h"

namespace hybridgen {

struct LayerWeights {
  at::Tensor attention_norm_weight, attention_norm_bias;  ///< [M]
  Projection qkv;                                         ///< [(H + 2 G) D, M]
  Projection query;                                       ///< a view of its first H D rows
  at::Tensor query_norm_weight, key_norm_weight;          ///< [D]; only with qk_norm
  Projection output;                                      ///< [M, H D]
  at::Tensor ffn_norm_weight, ffn_norm_bias;              ///< [M]
  Projection up;    ///< [F, M], or gate above up [2 F, M] for gated FFNs
  Projection down;  ///< [M, F]
};

/// A tensor of a checkpoint that is not on the device: it comes there whenever its layer is used.
struct StreamedTensor {
  bool is_query = false;
  std::int64_t slot_offset = 0;  ///< where it comes to, in the memory of its layer
  std::int64_t bytes = 0;
  at::Tensor host{};              ///< uint8 [bytes], pinned; undefined: it is on disk
  std::int64_t file_offset = -1;  ///< of WeightFiles
};

/// What is not on the device: of all layers, and of matrices around them.
struct StreamedLayers {
  std::int64_t slot_bytes = 0;  ///< of the memory that holds a layer; 0: all are on the device
  std::vector<std::deque<StreamedTensor>> layers;  ///< the query's first; they stay where they are
  std::deque<StreamedTensor> tables;
  std::unique_ptr<WeightFiles> files;  ///< null: nothing is on disk
  bool is_direct = false;              ///< the disk is read past the page cache
  bool stays = false;                  ///< in memory, as far as the system lets it
  std::int64_t host_bytes = 0;
  std::int64_t disk_bytes = 0;  ///< in files, be it that they stay in memory, too

  bool has_disk() const { return disk_bytes > 0; }
};

/// Where weights lie that a model has; the default has all of them on the device.
struct WeightHomes {
  LayerPlaces layers{};
  std::string folder{};  ///< for those on disk that cannot be read from the checkpoint as they are
  /// Past the page cache; absent: if the host has not the memory for what is on disk.
  std::optional<bool> reads_direct{};
  bool device_is_host = false;  ///< of weights without memory (meta), which a plan has
  /// Of a CPU device: all matrices of `layers` are on disk, and so are those around the layers;
  /// they stay in memory as far as the system lets them.
  bool are_shared = false;
};

class Weights {
 public:
  /// Allocates everything that lies in memory, uninitialised. Throws OutOfMemoryError naming the
  /// bytes needed, ConfigError for formats that do not go together (check_formats).
  Weights(const ModelConfig& config,
          DType dtype,
          at::Device device,
          WeightHomes homes = {},
          WeightFormats formats = {});

  /// Canonical names and shapes, in a fixed order. Weights with bias flags off have no bias entry.
  std::vector<std::pair<std::string, std::vector<std::int64_t>>> expected_tensors() const;

  /// Copies one tensor (any floating dtype, any device) into its place, as codes if that holds
  /// codes. CheckpointError for an unknown name, a wrong shape, NaN or infinity, a non-floating
  /// dtype, or a second load.
  void load_tensor(const std::string& name, const at::Tensor& tensor);

  /// Copies one matrix that is coded already into its place, which is to have its format.
  /// CheckpointError for an unknown name, another format, shape or dtype, scales or minima that are
  /// NaN or infinite, or a second load.
  void load_coded(const std::string& name, const LinearWeight& coded);

  /// Whether this tensor is to lie on disk, and not as codes, where load_from_file() takes it as it
  /// is if a file has it in the model's dtype.
  bool is_on_disk(const std::string& name) const;
  /// The tensor is `offset` bytes into the file at `path`, which is to stay as it is.
  /// CheckpointError for one that is not is_on_disk(), a second load, and a file that cannot be
  /// opened or ends before it; its numbers are not looked at.
  void load_from_file(const std::string& name, const std::string& path, std::int64_t offset);

  /// Gaussian weights of std 0.02 (norms 1, biases 0), seeded: for shapes without a checkpoint.
  void load_dummy(std::uint64_t seed);

  /// CheckpointError listing every tensor that was not loaded. Of shared ones those around the
  /// layers have their memory then; DeviceError if they cannot. Thread-safe.
  void finish();

  /// Of all of them, wherever they lie.
  std::int64_t bytes() const { return device_bytes() + streamed_.host_bytes + disk_bytes(); }
  /// Always there: shared ones, too.
  std::int64_t device_bytes() const {
    return bytes_ + (streamed_.stays ? streamed_.disk_bytes : 0);
  }
  std::int64_t disk_bytes() const { return streamed_.stays ? 0 : streamed_.disk_bytes; }
  const StreamedLayers& streamed() const { return streamed_; }
  /// A layer whose streamed tensors lie in `memory` (uint8 [slot_bytes] on the device), as
  /// StreamedTensor says.
  LayerWeights layer_in(std::int64_t layer, const at::Tensor& memory) const;
  /// A layer of a CPU device whose streamed tensors are the memory that their files are: they are
  /// read where they lie (WeightFiles::fetch).
  LayerWeights layer_in_files(std::int64_t layer) const;

  LinearWeight embed_tokens;     ///< [V, E]
  LinearWeight embed_positions;  ///< [positions + offset, M]; learned positions only
  LinearWeight project_in;       ///< [M, E]; only where E != M
  LinearWeight project_out;      ///< [E, M]
  at::Tensor final_norm_weight, final_norm_bias;
  LinearWeight lm_head;  ///< [V, E]; embed_tokens itself when tied
  std::vector<LayerWeights> layers;

 private:
  struct Slot {
    /// A dense one, or codes; or dense of any shape, as norms and biases are. Of no memory (meta)
    /// if it is streamed.
    LinearWeight destination;
    std::vector<StreamedTensor*> streamed{};  ///< one for each of its tensors; empty: on the device
    bool loaded = false;
    std::vector<std::int64_t> shape() const;
  };
  /// Rows of a projection that are a matrix of the checkpoint.
  struct Matrix {
    LayerMatrix matrix;
    std::string name;
    std::int64_t rows;
  };
  Slot& slot_to_load(const std::string& name);
  const Slot& slot(const std::string& name) const;
  /// Puts a tensor of the model's dtype, in host memory, where a streamed one lies.
  void store(StreamedTensor& streamed, const at::Tensor& tensor);
  void code(const std::string& name, Slot& slot, const at::Tensor& tensor);
  at::Tensor allocate(std::vector<std::int64_t> shape);
  at::Tensor allocate(std::vector<std::int64_t> shape, at::ScalarType type);
  LinearWeight allocate_rows(const std::optional<kernels::CodedFormat>& format,
                             std::int64_t outputs,
                             std::int64_t inputs,
                             bool resident);
  /// A matrix of the checkpoint by itself, on the device.
  LinearWeight allocate_linear(const std::string& name, std::int64_t outputs, std::int64_t inputs);
  /// One above the other: neighbours that have the same place and format are one part.
  Projection allocate_projection(const std::vector<Matrix>& matrices,
                                 std::int64_t inputs,
                                 bool has_bias);
  /// A matrix of the last layer so far, whose rows come to `rows` (meta) of a part that begins at
  /// `part_offset`.
  StreamedTensor& add_streamed(LayerMatrix matrix,
                               const at::Tensor& rows,
                               std::int64_t part_offset);
  /// A streamed tensor, of which `like` has no memory, as the memory that its file is.
  at::Tensor in_file(const StreamedTensor& streamed, const at::Tensor& like) const;
  /// Lets one of the members that are no layer's be the memory that its file is.
  void place_in_files(const std::string& name, LinearWeight& table);
  void expect(const std::string& name, const at::Tensor& destination);
  void expect(const std::string& name, const LinearWeight& destination);
  LayerWeights allocate_layer(const ModelConfig& config, const std::string& prefix);

  at::TensorOptions options_;
  WeightHomes homes_;
  WeightFormats formats_;
  std::int64_t query_rows_;
  StreamedLayers streamed_;
  std::int64_t slot_end_ = 0;  ///< of the last layer so far
  HostTensors host_tensors_;   ///< of a CPU device
  std::vector<std::string> order_;
  std::map<std::string, Slot> slots_;
  std::int64_t bytes_ = 0;
  HeldWeights held_;  ///< of host memory
  std::mutex finish_mutex_;
  bool are_tables_placed_ = false;
};

}  // namespace hybridgen
