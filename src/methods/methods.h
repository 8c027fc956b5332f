// SPDX-License-Identifier: Apache-2.0
// One file per method: what tables say about it, and its value built from options. method.cpp lists
// them.
#pragma once

#include "hybridgen/methods/method.h"
#include "methods/method_config.h"

namespace hybridgen {

MethodInfo full_info();
Method full_method(const EngineOptions& options);
MethodInfo flexgen_info();
Method flexgen_method(const EngineOptions& options);
MethodInfo moe_lightning_info();
Method moe_lightning_method(const EngineOptions& options);
MethodInfo streaming_llm_info();
Method streaming_llm_method(const EngineOptions& options);
MethodInfo h2o_info();
Method h2o_method(const EngineOptions& options);
MethodInfo keyformer_info();
Method keyformer_method(const EngineOptions& options);
MethodInfo infinigen_info();
Method infinigen_method(const EngineOptions& options);
MethodInfo hgca_info();
Method hgca_method(const EngineOptions& options);
MethodInfo hybridgen_info();
Method hybridgen_method(const EngineOptions& options);

/// What methods with a fixed budget share: the option `home`, and the parts that follow from it.
Tunable home_option();
Method retaining_method(const MethodInfo& info, const MethodConfig& config);

}  // namespace hybridgen
