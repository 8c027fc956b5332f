// SPDX-License-Identifier: Apache-2.0
// One builder per method; method.cpp lists them.
#pragma once

#include "hybridgen/methods/method.h"

namespace hybridgen {

Method full_method(const EngineOptions& options);
Method hybridgen_method(const EngineOptions& options);

}  // namespace hybridgen
