// SPDX-License-Identifier: Apache-2.0
// A step's new token: who leaves the device for it, and where it stands.
#pragma once

#include <cstdint>

#include "pipeline/loop_context.h"
#include "pipeline/request_state.h"

namespace hybridgen {

/// Makes room for one more token and gives it a place; its keys and values follow layer by layer.
void add_token(LoopContext& loop, RequestState& request);

// A device that is not the host sends the rows that the next new token will push out, or that a
// retention policy takes to the host, at the end of a step.
/// Starts the copy of what leaves next, after the prompt or a step.
void send_leaving(const Method& method, RequestState& request);
/// Whether what leaves for the next token is still to be sent.
bool misses_leaving(const Method& method, const RequestState& request);

/// Its position, for rotary or learned positions. After add_token.
std::int64_t position_of_newest(PositionMode mode, const RequestState& request);

}  // namespace hybridgen
