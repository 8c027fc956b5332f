// SPDX-License-Identifier: Apache-2.0
// What selectors check about their arguments, in one wording.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"

namespace hybridgen {

inline void require_shape(std::string_view selector, const SelectorShape& shape) {
  const auto require = [&](std::string_view field, std::int64_t value) {
    if (value >= 1) return;
    throw ConfigError(message(
        "[", selector, "] ", field, " is ", value, "; allowed: >= 1; pass the model's shape"));
  };
  require("num_layers", shape.num_layers);
  require("num_kv_heads", shape.num_kv_heads);
  require("query_heads_per_kv_head", shape.query_heads_per_kv_head);
  require("head_dim", shape.head_dim);
  require("max_offloaded", shape.max_offloaded);
}

/// Place of a (layer, KV head) among the states of all, layer after layer.
inline std::size_t head_index(std::string_view selector,
                              const SelectorShape& shape,
                              std::int64_t layer,
                              std::int64_t kv_head) {
  if (layer < 0 || layer >= shape.num_layers || kv_head < 0 || kv_head >= shape.num_kv_heads) {
    throw ConfigError(message("[",
                              selector,
                              "] layer is ",
                              layer,
                              " and KV head ",
                              kv_head,
                              "; allowed: 0 to ",
                              shape.num_layers - 1,
                              " and 0 to ",
                              shape.num_kv_heads - 1,
                              "; make the selector with the model's shape"));
  }
  return static_cast<std::size_t>(layer * shape.num_kv_heads + kv_head);
}

inline void require_k(std::string_view selector, const PlanContext& context) {
  if (context.k >= 0 && context.k <= context.num_offloaded) return;
  throw ConfigError(message("[",
                            selector,
                            "] k is ",
                            context.k,
                            "; allowed: 0 to n_c (n_c is ",
                            context.num_offloaded,
                            "); pass min(k, n_c)"));
}

inline void require_room(std::string_view selector,
                         std::span<const float> logits,
                         std::span<const std::int32_t> positions,
                         std::span<const float> values) {
  if (positions.size() <= logits.size() && positions.size() == values.size()) return;
  throw ConfigError(message("[",
                            selector,
                            "] room for ",
                            positions.size(),
                            " positions and ",
                            values.size(),
                            " values; allowed: the same number of both, at most n_c (n_c is ",
                            logits.size(),
                            "); pass min(k, n_c) of each"));
}

}  // namespace hybridgen
