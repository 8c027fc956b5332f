// SPDX-License-Identifier: Apache-2.0
// Carries out what the eviction engine decided: K and V rows from the device into the host store,
// and word of it to everything that keeps track of offloaded tokens.
#pragma once

#include <ATen/core/Tensor.h>

#include "pipeline/request_state.h"

namespace hybridgen {

/// Copies `tokens` of one layer; tokens.begin is row `first_row` of keys and values [G, rows, D]
/// (any device, last dimension contiguous). Returns the bytes that left the device.
std::int64_t offload_rows(RequestState& request,
                          std::int64_t layer,
                          TokenRange tokens,
                          const at::Tensor& keys,
                          const at::Tensor& values,
                          std::int64_t first_row);

/// The pool is full: row `row` of one layer takes the place of the tokens it decides to drop, one
/// per KV head. Returns the bytes that left the device.
std::int64_t replace_in_pool(RequestState& request,
                             std::int64_t layer,
                             const at::Tensor& keys,
                             const at::Tensor& values,
                             std::int64_t row);

/// Fills a request's shadow (if it has one) from all its offloaded keys once the prompt is read,
/// and again whenever there are twice as many as calibrated it: what the keys look like moves with
/// the position, and all of them together serve best. Call while no host job is in flight.
void fill_shadow(RequestState& request);

}  // namespace hybridgen
