// SPDX-License-Identifier: Apache-2.0
// DeviceOps::plan() through LibTorch's operators, row by row.
#pragma once

#include <ATen/core/Tensor.h>

#include "device/device_ops.h"

namespace hybridgen {

/// The item's query heads as its keys are turned and rounded: [G, R, W].
at::Tensor turned_queries(const at::Tensor& query, const PlanItem& item, std::int64_t layer);

/// Of each row of guesses [G, N] the number within alpha of the row's largest; their mean over the
/// rows without its fraction, taken into [1, most]: one int64 where they are.
at::Tensor count_near(const at::Tensor& guesses, double alpha, std::int64_t most);

/// The places of an item by its guesses; `count` of the largest, one number where they are, or
/// undefined: as many as there are places.
void rank_through_torch(const at::Tensor& guesses,
                        const at::Tensor& count,
                        bool takes_newer,
                        at::Tensor& places);

void plan_through_torch(const at::Tensor& query, const PlanBatch& batch);

}  // namespace hybridgen
