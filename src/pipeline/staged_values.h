// SPDX-License-Identifier: Apache-2.0
// FetchKeys: attention to values that its own weights choose, which are fetched through staging.
#pragma once

#include <cstdint>

#include "pipeline/loop_context.h"
#include "pipeline/micro_batch.h"

namespace hybridgen {

/// In place of DeviceOps::merge: into batch.ws.attended_heads. The driver waits for the weights.
void attend_by_parts(LoopContext& loop, std::int64_t layer, MicroBatch& batch);

}  // namespace hybridgen
