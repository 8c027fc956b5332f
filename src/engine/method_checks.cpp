// SPDX-License-Identifier: Apache-2.0
#include "method_checks.h"

#include "hybridgen/core/error.h"

namespace hybridgen {

void check_selector(const std::string& name, SelectionStrategy strategy, const char* option) {
  if (strategy_of_selector(name) != strategy) {
    std::string allowed;
    for (const std::string& candidate : selector_names(strategy)) {
      allowed += (allowed.empty() ? "" : ", ") + candidate;
    }
    throw ConfigError(message("[engine] ",
                              option,
                              " '",
                              name,
                              "' does not select ",
                              name_of(strategy),
                              "; allowed: ",
                              allowed));
  }
}

void check_method(const Method& method, const ModelConfig& config) {
  const bool is_rotary = config.position == PositionKind::kRotary;
  if (method.positions == PositionMode::kCacheIndex && !is_rotary) {
    throw ConfigError(message("[method ",
                              method.name,
                              "] positions is 'shift' and the model has learned positions; allowed "
                              "there: original, clamp"));
  }
  if (method.positions == PositionMode::kClamped && is_rotary) {
    throw ConfigError(message("[method ",
                              method.name,
                              "] positions is 'clamp' and the model has rotary positions; allowed "
                              "there: original, shift"));
  }
}

}  // namespace hybridgen
