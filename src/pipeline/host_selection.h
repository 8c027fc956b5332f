// SPDX-License-Identifier: Apache-2.0
// The part of a host task that asks selectors, and does not trust them; with a proxy of the keys
// it asks for candidates and decides by exact logits.
#pragma once

#include "kernels/cpu_kernels.h"
#include "pipeline/host_task.h"

namespace hybridgen {

/// The tokens of a choice that needs no logits, left in `merged` as well unless nothing but a
/// result leaves the host.
std::span<const std::int32_t> plan_tokens(const HostTask& task);

/// `scores`: of all offloaded tokens, row r of the KV head's query heads at r * stride; a proxy's
/// if the job has one. Leaves choices and logits of every query head, and their union; where the
/// job wants it, what was not chosen, too, over which scores are lost.
void select_tokens(const HostTaskRunner& runner,
                   const HostTask& task,
                   float* scores,
                   std::int64_t stride);

}  // namespace hybridgen
