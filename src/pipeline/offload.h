// SPDX-License-Identifier: Apache-2.0
// Carries out what the eviction engine decided: K and V rows from the device into the host store,
// and word of it to everything that keeps track of offloaded tokens.
#pragma once

#include <ATen/core/Tensor.h>

#include "pipeline/request_state.h"
#include "runtime/link_meter.h"

namespace hybridgen {

/// Copies `tokens` of one layer; tokens.begin is row `first_row` of keys and values [G, rows, D]
/// (any device, last dimension contiguous).
void offload_rows(RequestState& request,
                  std::int64_t layer,
                  TokenRange tokens,
                  const at::Tensor& keys,
                  const at::Tensor& values,
                  std::int64_t first_row,
                  LinkMeter& link);

/// The host is full: row `row` of one layer takes the place of the tokens that the request's
/// placement decides to drop, one per KV head.
void replace_on_host(RequestState& request,
                     std::int64_t layer,
                     const at::Tensor& keys,
                     const at::Tensor& values,
                     std::int64_t row,
                     LinkMeter& link);

}  // namespace hybridgen
