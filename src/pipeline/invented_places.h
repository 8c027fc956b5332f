// SPDX-License-Identifier: Apache-2.0
// What a timed device, which has no values, is said to choose.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/div.h>

#include <cstdint>

namespace hybridgen {

/// `count` <= `tokens` places, ascending and all over the tokens: whoever gathers them goes from
/// row to row as for a real choice. int64 on the host.
inline at::Tensor invented_places(std::int64_t count, std::int64_t tokens) {
  return at::div(at::arange(count, at::kLong) * tokens, count, "floor");
}

}  // namespace hybridgen
