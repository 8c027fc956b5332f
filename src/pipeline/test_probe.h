// SPDX-License-Identifier: Apache-2.0
// The probe that TestSwitches ask for.
#pragma once

#include <memory>

#include "hybridgen/core/engine_options.h"
#include "pipeline/pipeline_probe.h"

namespace hybridgen {

/// Null if `switches` ask for nothing that a probe does.
std::unique_ptr<PipelineProbe> make_test_probe(const TestSwitches& switches);

}  // namespace hybridgen
