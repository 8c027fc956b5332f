// SPDX-License-Identifier: Apache-2.0
// Selectors that are chosen by registry name only.
#pragma once

#include <cstdint>
#include <memory>

#include "hybridgen/selection/token_selector.h"

namespace hybridgen {

/// Largest running sum of attention weights: "h2o" (Post-QKT).
std::unique_ptr<TokenSelector> make_h2o_selector(const SelectorShape& shape);

/// The same with weights tempered before they are added: "keyformer" (Post-QKT). The temperature
/// rises from 1 (prompt) to 2 over `num_steps` decode steps, then stays. Without Gumbel noise.
/// ConfigError if num_steps < 1.
std::unique_ptr<TokenSelector> make_keyformer_selector(const SelectorShape& shape,
                                                       std::int64_t num_steps = 128);

/// Whole key blocks, those first whose largest possible logit is the largest (Quest):
/// "block_digests" (Pre-QKT). All query heads of a KV head share the choice.
std::unique_ptr<TokenSelector> make_block_digests_selector(const SelectorShape& shape);

}  // namespace hybridgen
