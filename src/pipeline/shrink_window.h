// SPDX-License-Identifier: Apache-2.0
// A running request gives up tokens on the device: the oldest leave for the host at once.
#pragma once

#include <cstdint>

#include "pipeline/request_state.h"
#include "runtime/link_meter.h"

namespace hybridgen {

/// Between two steps, nothing of the request in flight. `smaller` is the request's plan with a
/// smaller window; the same host memory is reserved for both. What leaves is that which the window
/// has no room for; the device's memory for the rest is given back, and so is its reservation.
void shrink_window(RequestState& request,
                   const DecoderModel& model,
                   const Method& method,
                   const RequestPlan& smaller,
                   LinkMeter& link);

}  // namespace hybridgen
