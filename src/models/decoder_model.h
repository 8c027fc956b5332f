// SPDX-License-Identifier: Apache-2.0
// One decoder-only transformer, described by ModelConfig: embedding, blocks cut at the seams that
// hybrid attention needs, final norm and head. Every function works on rows: a decode step's
// requests or a prefill chunk's tokens.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "device/device_context.h"
#include "device/device_ops.h"
#include "device/rope_table.h"
#include "hybridgen/core/model_config.h"
#include "models/weights.h"

namespace hybridgen {

/// What turns the rows of a pass: row r by row rows[r] (int64, on the device) of a table.
struct Rotation {
  RopeTable table;
  at::Tensor rows;
};

/// Tensors of one pass over `rows` rows, allocated once and reused layer after layer, step after
/// step.
struct BlockWorkspace {
  BlockWorkspace() = default;
  BlockWorkspace(const ModelConfig& config, DType dtype, at::Device device, std::int64_t rows);
  /// Makes guess_normed, for steps whose queries are guessed.
  void add_guess_norm();
  static std::int64_t required_bytes(const ModelConfig& config, DType dtype, std::int64_t rows);
  /// Views of the first `count` rows of everything.
  BlockWorkspace first_rows(std::int64_t count) const;
  /// The same with positions and x of its own: what of a pass outlives a layer.
  BlockWorkspace beside(std::int64_t count) const;

  std::int64_t rows = 0;
  at::Tensor positions;              ///< [rows] int64
  std::optional<Rotation> rotation;  ///< of the pass, where it is not that of single steps
  at::Tensor x;               ///< [rows, M] residual stream: the layer's input, later its output
  at::Tensor normed;          ///< [rows, M]
  at::Tensor guess_normed;    ///< [rows, M] the same input as another layer norms it, if added
  at::Tensor embedding;       ///< [rows, E]; only where E != M
  at::Tensor qkv;             ///< [rows, (H + 2 G) D]
  at::Tensor query;           ///< view of qkv: [rows, H, D]
  at::Tensor key;             ///< view of qkv: [rows, G, D]
  at::Tensor value;           ///< view of qkv: [rows, G, D]
  at::Tensor guess;           ///< [rows, H D] query guessed for the next layer
  at::Tensor guess_heads;     ///< view of guess: [rows, H, D]
  at::Tensor attended;        ///< [rows, H D] attention output
  at::Tensor attended_heads;  ///< view of attended: [rows, H, D]
  at::Tensor projected;       ///< [rows, M]
  at::Tensor up;              ///< [rows, 2 F] (gated) or [rows, F]
  at::Tensor gate_half, up_half;  ///< views of up
  at::Tensor ffn;                 ///< [rows, F]
  bool lacks_projected = false;   ///< `projected` has yet to be added to x
  bool is_normed = false;         ///< `normed` is what attention_inputs() reads
};

/// Rotates the first `count` rows of keys [G, capacity, D] by the table's rows places [count]
/// (int64, on the device).
void rotate_keys(const DeviceOps& ops,
                 const RopeTable& table,
                 const at::Tensor& places,
                 at::Tensor& keys);

class DecoderModel {
 public:
  static constexpr std::int64_t kFirstPositions = 4096;  ///< of the rotary table, at least

  /// Weights are allocated, not loaded. See Weights and DeviceContext for what is thrown.
  DecoderModel(const ModelConfig& config,
               DType dtype,
               const std::string& device,
               WeightHomes homes = {},
               WeightFormats formats = {});

  const ModelConfig& config() const { return config_; }
  DType dtype() const { return dtype_; }
  const DeviceContext& device() const { return device_; }
  Weights& weights() { return weights_; }
  const Weights& weights() const { return weights_; }

  /// Lets the rotary table cover positions 0 to `positions` - 1, as far as the model has them; call
  /// before rows at such positions are computed. Other threads may compute meanwhile.
  void prepare_positions(std::int64_t positions);

  /// x of the workspace from token ids [rows] (int64, on the device) and the workspace's positions.
  void embed(const DeviceOps& ops, const at::Tensor& tokens, BlockWorkspace& ws) const;

  /// The query that `layer` would ask with if its input were ws.x, rotated: into ws.guess
  /// (paper §4.2.2: input of layer i, weights of layer i+1). `norm_layer`: whose norm is used.
  /// `own`: the layer that reads ws.x, if its attention_inputs() come next; both norms are then one
  /// pass. Null: they came before.
  void project_query(const DeviceOps& ops,
                     const LayerWeights& layer,
                     const LayerWeights& norm_layer,
                     const LayerWeights* own,
                     BlockWorkspace& ws) const;

  /// Norm, query, key and value projections and rotation of `layer`: into ws.query, key, value.
  /// Without `rotate_key` the key stays as it was before its rotation. With a `batch` keys and
  /// values become its newest resident tokens.
  void attention_inputs(const DeviceOps& ops,
                        const LayerWeights& layer,
                        BlockWorkspace& ws,
                        bool rotate_key = true,
                        const AttentionBatch* batch = nullptr) const;

  /// Row p: what turns a token at position p in a decode step. Stays valid while the model's grows.
  RopeTable step_rope() const;
  /// Row p: what turned token p of a prompt of so many tokens, which were prefilled together.
  RopeTable prompt_rope(std::int64_t length) const;
  /// Of tokens [first, first + count) of such a prompt, if a step at their positions turns
  /// otherwise.
  std::optional<Rotation> prompt_rotation(std::int64_t first,
                                          std::int64_t count,
                                          std::int64_t length) const;

  /// Output projection of `layer` from ws.attended, added to ws.x.
  void attention_output(const DeviceOps& ops, const LayerWeights& layer, BlockWorkspace& ws) const;

  /// Feed-forward of `layer`, added to ws.x, which becomes the input of the next layer. In a decode
  /// step the sum may wait for the norm that reads it (ws.lacks_projected).
  void feed_forward(const DeviceOps& ops,
                    const LayerWeights& layer,
                    BlockWorkspace& ws,
                    bool may_wait = false) const;

  /// Final norm and head of ws.x: float32 [rows, V].
  void head(const DeviceOps& ops, BlockWorkspace& ws, at::Tensor& logits) const;

 private:
  /// What is done to the heads that the layer of `weights` made before they meet: their own norms
  /// and rotation.
  void place(const DeviceOps& ops,
             const LayerWeights& weights,
             LayerHeads heads,
             const AttentionBatch* batch,
             const BlockWorkspace& ws) const;

  /// What a layer's projections read, [rows, M]: ws.x normed into ws.normed, or ws.x itself where
  /// the norm comes after the residual sum.
  const at::Tensor& attention_input(const DeviceOps& ops,
                                    const LayerWeights& weights,
                                    BlockWorkspace& ws) const;
  /// The same for the query that is guessed; see project_query().
  const at::Tensor& guess_input(const DeviceOps& ops,
                                const LayerWeights& norm_layer,
                                const LayerWeights* own,
                                BlockWorkspace& ws) const;

  /// ws.x, with all that it lacks, normed into ws.normed and what `second` says.
  const at::Tensor& normed(const DeviceOps& ops,
                           const at::Tensor& weight,
                           const at::Tensor& bias,
                           BlockWorkspace& ws,
                           const NormTarget* second = nullptr) const;

  /// Of the rows of a pass.
  Rotation rotation_of(const BlockWorkspace& ws) const;

  ModelConfig config_;
  DType dtype_;
  DeviceContext device_;
  Weights weights_;
  mutable std::mutex rope_mutex_;  ///< requests of several engines may share the model
  RopeTable rope_;
  std::int64_t rope_positions_ = 0;
};

}  // namespace hybridgen
