// SPDX-License-Identifier: Apache-2.0
// A step's new token: who leaves the device for it, and where it stands.
#pragma once

#include <cstdint>

#include "pipeline/loop_context.h"
#include "pipeline/request_state.h"

namespace hybridgen {

/// Makes room for one more token and gives it a place; its keys and values follow layer by layer.
void add_token(LoopContext& loop, RequestState& request);

/// Its position, for rotary or learned positions. After add_token.
std::int64_t position_of_newest(PositionMode mode, const RequestState& request);

}  // namespace hybridgen
