// SPDX-License-Identifier: Apache-2.0
// The method of an engine, and what is refused about it before anything is built.
#pragma once

#include <optional>

#include "hybridgen/core/engine_options.h"
#include "hybridgen/core/model_config.h"
#include "hybridgen/methods/method.h"

namespace hybridgen {

/// The method that `options` name, or the user's own, which is checked as the library's are.
/// ConfigError for options that it does not read and for what this model cannot do with it.
Method checked_method(const EngineOptions& options,
                      std::optional<Method> composition,
                      const ModelConfig& config);

}  // namespace hybridgen
