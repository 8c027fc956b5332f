// SPDX-License-Identifier: Apache-2.0
// What methods that rank tokens by attention need from a prompt: sums of softmax weights over its
// rows. Computed in a second pass from the rows' log-sum-exps, block by block, so that no matrix of
// prompt by prompt is ever held.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "hybridgen/parts/part_roles.h"
#include "parts/parts.h"

namespace hybridgen {

/// Keys [G, N, D] at positions [first_position, first_position + N) that T query rows see: all of
/// them, or, causal, row t only the first t + 1 (then N == T).
struct ScoredKeys {
  at::Tensor keys;
  std::int64_t first_position = 0;
  bool causal = false;
};

/// float32 logits of a block of rows: 16 MiB, or one row's.
inline constexpr std::int64_t kScoreBlockElements = std::int64_t{1} << 22;

/// Calls visit(first row, logits [G, R, rows, N]) for blocks of query rows [T, H, D]; hidden logits
/// are -inf.
void for_row_blocks(const at::Tensor& query,
                    const ScoredKeys& part,
                    const std::function<void(std::int64_t, at::Tensor&)>& visit);

/// Sums over T rows of exp(logit - lse): float32 [H, N] on the host. query [T, H, D]; lse [H, T]
/// natural, of the softmax meant: over all tokens, or over this part only.
at::Tensor column_sums(const at::Tensor& query, const ScoredKeys& keys, const at::Tensor& lse);

/// Sums of plain softmax weights, per KV head; others override what a chunk adds. The prompt must
/// be on the device as a whole. Gone once the retention policy has chosen by them.
class SummedPromptScores : public PromptScores {
 public:
  explicit SummedPromptScores(const PartContext& context);

  /// Between steps there is nothing left of them.
  PartState state() const override { return {}; }
  void on_prompt_rows(const PromptRows& rows) final;
  std::span<const float> sums(std::int64_t layer,
                              std::int64_t kv_head,
                              std::int64_t num_tokens) const final;
  void forget() final;

 private:
  /// What a chunk's rows add to the tokens of each part: one float32 [H, N] per part, on the host.
  virtual std::vector<at::Tensor> score(const PromptRows& rows,
                                        const std::vector<ScoredKeys>& parts) const;

  std::int64_t groups_;
  std::int64_t capacity_;
  std::vector<at::Tensor> sums_;  ///< per layer float32 [G, prompt capacity]; undefined: none yet
};

}  // namespace hybridgen
