// SPDX-License-Identifier: Apache-2.0
// InfiniGen's speculation (Lee et al., OSDI 2024; snu-comparch/InfiniGen): a few dimensions of
// every offloaded key stay on the device, and the next layer's logits are guessed from them alone.
//
// Which dimensions: per (layer, KV head) keys and queries are turned by an orthogonal matrix A, the
// right singular vectors of the prompt's queries, which changes no logit ((qA).(kA) = q.k) and
// gathers most of the queries' length in few columns; those with the largest sums of |qA| are kept.
// A is applied to rotated queries and keys at run time, because it does not commute with rotary
// positions. Query heads that share a KV head share A, the columns and the chosen tokens.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "device/device_ops.h"
#include "hybridgen/core/model_config.h"
#include "hybridgen/parts/part_roles.h"
#include "parts/parts.h"

namespace hybridgen {

class PartialKeys final : public TokenPlanner {
 public:
  /// Room for `capacity` tokens on the device of `options`.
  PartialKeys(const ModelConfig& config,
              at::TensorOptions options,
              const PartialKeyOptions& settings,
              std::int64_t capacity);

  static std::int64_t required_bytes(const ModelConfig& config,
                                     DType dtype,
                                     const PartialKeyOptions& settings,
                                     std::int64_t capacity);

  bool has_columns(std::int64_t layer) const {
    return has_columns_[static_cast<std::size_t>(layer)];
  }
  /// Chooses a layer's columns from sample queries [T, H, D], rotated; T >= 1.
  void choose_columns(std::int64_t layer, const at::Tensor& queries);

  /// Keeps the columns of rotated keys [G, N, D] in slots [first_slot, first_slot + N).
  void write(std::int64_t layer, std::int64_t first_slot, const at::Tensor& keys);
  /// The columns come from the prompt's queries and must be saved; what they keep of the keys need
  /// not.
  PartState state() const override { return {.from_keys = true, .saved = true}; }
  void on_prompt_rows(const PromptRows& rows) override;
  void on_offload(const OffloadedRows& rows) override;
  void on_replace(const ReplacedRow& row) override;
  void end_step() override { num_replacing_ = 0; }

  /// Per KV head a token's score is the largest guessed logit of its query heads, and every KV head
  /// fetches its own n' best. n' is `count` if that is given. Otherwise tokens within alpha of a
  /// head's best count; n' is their mean number over the KV heads, at least 1 and at most
  /// max_fetch.
  PlanItem plan(std::int64_t num_tokens,
                std::optional<std::int64_t> count = std::nullopt) const override;

 private:
  /// Keys [heads, N, D], turned by their heads' columns, into blocks of the same heads.
  static void write_blocks(const at::Tensor& keys,
                           const at::Tensor& columns,
                           std::int64_t first_slot,
                           const at::Tensor& blocks);
  static std::int64_t num_columns(const ModelConfig& config, const PartialKeyOptions& settings);

  PartialKeyOptions settings_;
  std::int64_t num_kv_heads_;
  std::int64_t query_heads_per_kv_head_;
  std::int64_t head_dim_;
  std::int64_t num_columns_;
  at::Tensor columns_;              ///< [L, G, D, rd]: the chosen columns of A
  std::vector<bool> has_columns_;   ///< [L]
  bool leaves_all_layers_ = false;  ///< the tokens at hand: written for all layers with the first
  at::Tensor keys_;                 ///< [L, G, blocks, rd, 32], as host keys lie
  /// Of each token that takes others' places in a step, int64 [L G] on the host: where in a head of
  /// keys_ its first column goes. The device reads it until the step ends.
  std::vector<at::Tensor> replaced_;
  std::size_t num_replacing_ = 0;  ///< tokens of the step at hand, the one under way not included
  at::Tensor column_offsets_;      ///< int64 [rd]: from there to each column; undefined until used
};

}  // namespace hybridgen
