// SPDX-License-Identifier: Apache-2.0
// FetchKeys: attention that a method's own part finishes, with values fetched through staging.
#pragma once

#include <cstdint>

#include "pipeline/loop_context.h"
#include "pipeline/micro_batch.h"

namespace hybridgen {

/// In place of DeviceOps::merge, row by row: into batch.ws.attended_heads.
void attend_by_parts(LoopContext& loop, std::int64_t layer, MicroBatch& batch);

}  // namespace hybridgen
