// SPDX-License-Identifier: Apache-2.0
// Copies within an emulated device, and between it and the host.
#pragma once

#include <ATen/core/Tensor.h>

namespace hybridgen::emulated {

/// LibTorch's copy_ by CUDA's rules: a copy between host and device lets the host go on if it is
/// asked to, the host's memory is pinned and no conversion happens on the host; else the host
/// waits.
at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking);

}  // namespace hybridgen::emulated
