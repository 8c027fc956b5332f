// SPDX-License-Identifier: Apache-2.0
// What tensors of a decode step are in the flat arrays that kernels read (kernels/decode_rows.h).
#pragma once

#include "device/device_ops.h"
#include "device/resident_cache.h"
#include "kernels/decode_rows.h"

namespace hybridgen {

/// Of an item whose request has these caches.
kernels::StepRow flat_row(const AttentionItem& item, const ResidentCache& resident);

kernels::PayloadRow flat_row(const HostPayload& payload);

/// But for `count` and `work`, of which tensors say nothing.
kernels::PlanRow flat_row(const PlanItem& item);

}  // namespace hybridgen
