// SPDX-License-Identifier: Apache-2.0
#include "engine/method_checks.h"

#include <string>
#include <utility>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

/// ConfigError unless the selector `name` is of that strategy; `option` is how users call it.
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

/// ConfigError for what this model cannot do with a method.
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

}  // namespace

Method checked_method(const EngineOptions& options,
                      std::optional<Method> composition,
                      const ModelConfig& config) {
  options.validate();
  Method method;
  if (composition) {
    refuse_unread(*composition, options);
    method = std::move(*composition);
  } else {
    method = make_method(options);
  }
  if (options.max_model_len > config.max_positions && method.positions == PositionMode::kOriginal) {
    throw ConfigError(message("[engine] max_model_len is ",
                              options.max_model_len,
                              "; allowed: 1 to ",
                              config.max_positions,
                              " (the model's positions); more with positions='shift' or 'clamp' of "
                              "streaming_llm or h2o"));
  }
  check_method(method, config);
  method.key_precision = options.key_precision;
  method.value_precision = options.value_precision;
  if (method.offloads()) {
    const HybridGenOptions chosen = hybridgen_options(options);
    check_selector(chosen.selector, SelectionStrategy::kPostQkt, "selector");
    check_selector(chosen.pre_selector, SelectionStrategy::kPreQkt, "pre_selector");
  }
  return method;
}

}  // namespace hybridgen
