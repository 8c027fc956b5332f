// SPDX-License-Identifier: Apache-2.0
// Contextual cache of HGCA: of the tokens that leave the device, those whose attention weight there
// was high. Decided once, when they leave, and again whenever a prompt chunk attends to all.
#pragma once

#include <cstdint>
#include <memory>

#include "hybridgen/selection/token_selector.h"

namespace hybridgen {

struct HgcaOptions {
  double alpha = 0.5;          ///< share of the newest weight in a token's moving average
  double beta = 0.5;           ///< kept: average >= beta / resident tokens; 0 keeps everything
  std::int64_t keep_min = 10;  ///< of each block of leaving tokens, at least
  std::int64_t groups = 4;     ///< groups of KV heads; those of a group keep equally many
};

/// "hgca" (Pre-QKT). Its plan is the contextual cache, whatever k is; it lies in the selector and
/// is valid until the next hook. on_offload, and on_prefill of offloaded tokens, must be called for
/// the KV heads of a layer in ascending order: the last one completes the choice of the layer.
/// ConfigError unless 0 <= alpha <= 1, beta >= 0, keep_min >= 0, groups >= 1.
std::unique_ptr<TokenSelector> make_hgca_selector(const SelectorShape& shape,
                                                  const HgcaOptions& options);

}  // namespace hybridgen
