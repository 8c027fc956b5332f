// SPDX-License-Identifier: Apache-2.0
// What comes back from the softmax: weights for selectors and retention policies, and the moves of
// rows that a retention policy decides.
#pragma once

#include <cstdint>
#include <span>

#include "pipeline/loop_context.h"
#include "pipeline/micro_batch.h"

namespace hybridgen {

/// Whether anything is done with the weights of a request's softmax.
bool wants_weights(const RequestState& request);

/// After merge() of a layer: the weights of the attended tokens go to every part that wants
/// them, and each new token's rows take the place that a retention policy gives them, in the
/// resident cache or in the host store. On a device that is not the host nothing but the weights'
/// copy starts.
void give_feedback(LoopContext& loop, std::int64_t layer, MicroBatch& batch);

/// The rest of it there, for all layers of a request, once the host has waited for the step. Rows
/// that are to move within the resident cache are not moved yet: their slots go to `moves` [L, G].
void give_sent_feedback(LoopContext& loop, RequestState& request, std::span<std::int32_t> moves);

/// After the last layer: tells the token mapper and the resident cache what a retention policy
/// dropped; nothing without one.
void end_retention_step(RequestState& request);

}  // namespace hybridgen
