// SPDX-License-Identifier: Apache-2.0
// What methods that rank tokens by attention need from a prompt: sums of softmax weights over its
// rows.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "hybridgen/parts/part_roles.h"
#include "parts/parts.h"

namespace hybridgen {

/// Sums of softmax weights per KV head; heirs say of which softmax. The prompt must be on the
/// device as a whole. Gone once the retention policy has chosen by them.
class SummedPromptScores : public PromptScores {
 public:
  explicit SummedPromptScores(const PartContext& context);

  /// Between steps there is nothing left of them.
  PartState state() const override { return {}; }
  std::span<const float> sums(std::int64_t layer,
                              std::int64_t kv_head,
                              std::int64_t num_tokens) const final;
  void forget() final;

 protected:
  /// Adds what a chunk's rows weigh a range of tokens.
  void add(std::int64_t layer, std::int64_t kv_head, const PrefillAttention& attention);

 private:
  std::int64_t groups_;
  std::int64_t capacity_;
  std::vector<at::Tensor> sums_;  ///< per layer float32 [G, prompt capacity]; undefined: none yet
};

}  // namespace hybridgen
