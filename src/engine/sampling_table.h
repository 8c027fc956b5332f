// SPDX-License-Identifier: Apache-2.0
// The table of SamplingOptions; see core/option_table.h.
#pragma once

#include "core/option_tables.h"
#include "hybridgen/engine/sampler.h"

namespace hybridgen {

const OptionTable<SamplingOptions>& sampling_table();
/// What `SamplingParams` gives the engine.
OptionClass sampling_class();

}  // namespace hybridgen
