// SPDX-License-Identifier: Apache-2.0
// The bytes that a tensor's elements take.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "emulated/device.h"

namespace hybridgen::emulated {

/// Adds the ranges of `tensor`'s elements, adjacent ones as one.
void add_ranges(const at::Tensor& tensor, std::vector<ByteRange>& ranges);

}  // namespace hybridgen::emulated
