// SPDX-License-Identifier: Apache-2.0
#include "kvcache/eviction_engine.h"

#include <algorithm>

#include "hybridgen/core/error.h"

namespace hybridgen {

EvictionEngine::EvictionEngine(std::int64_t window, std::int64_t block)
    : window_(std::max<std::int64_t>(window, 1)), block_(block) {
  if (window < 0) {
    throw ConfigError(
        message("[eviction engine] window is ",
                window,
                "; allowed: >= 0; pass the number of tokens that stay on the device"));
  }
  if (block < 1) {
    throw ConfigError(message("[eviction engine] block is ", block, "; allowed: >= 1 token"));
  }
}

EvictionPlan EvictionEngine::plan(const TokenMapper& tokens, std::int64_t incoming) const {
  if (incoming < 0) {
    throw ConfigError(message(
        "[eviction engine] incoming is ", incoming, "; allowed: >= 0; pass a count of new tokens"));
  }
  const std::int64_t may_stay = std::max<std::int64_t>(window_ - incoming, 0);
  const std::int64_t excess = std::max<std::int64_t>(tokens.num_resident() - may_stay, 0);
  const std::int64_t whole_blocks = (excess + block_ - 1) / block_ * block_;
  const std::int64_t leave = std::min(whole_blocks, tokens.num_resident());
  const std::int64_t oldest = tokens.num_offloaded();
  return {{oldest, oldest + leave}};
}

}  // namespace hybridgen
