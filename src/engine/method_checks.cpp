// SPDX-License-Identifier: Apache-2.0
#include "engine/method_checks.h"

#include "hybridgen/core/error.h"

namespace hybridgen {

void check_selector(const std::string& name, SelectionStrategy strategy, const char* option) {
  if (strategy == SelectionStrategy::kPreQkt && name == kPartialKeysSelector) {
    return;
  }
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
  const auto refuse = [&](const char* mode, const char* kind) {
    std::string allowed = method.position_modes;
    const std::string impossible = message(", ", mode);
    if (const std::size_t found = allowed.find(impossible); found != std::string::npos) {
      allowed.erase(found, impossible.size());
    }
    throw ConfigError(message("[method ",
                              method.name,
                              "] positions is '",
                              mode,
                              "' and the model has ",
                              kind,
                              " positions; allowed there: ",
                              allowed));
  };
  if (method.positions == PositionMode::kCacheIndex && !is_rotary) {
    refuse("shift", "learned");
  }
  if (method.positions == PositionMode::kClamped && is_rotary) {
    refuse("clamp", "rotary");
  }
}

}  // namespace hybridgen
