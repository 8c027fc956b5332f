// SPDX-License-Identifier: Apache-2.0
// What selectors check about their arguments, in one wording.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"

namespace hybridgen {

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
