// SPDX-License-Identifier: Apache-2.0
// What an engine refuses about a method before it builds anything.
#pragma once

#include <string>

#include "hybridgen/core/model_config.h"
#include "hybridgen/methods/method.h"

namespace hybridgen {

/// ConfigError unless the selector `name` is of that strategy; `option` is how users call it.
void check_selector(const std::string& name, SelectionStrategy strategy, const char* option);

/// ConfigError for what this model cannot do with a method.
void check_method(const Method& method, const ModelConfig& config);

}  // namespace hybridgen
