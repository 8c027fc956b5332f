// SPDX-License-Identifier: Apache-2.0
// Host memory that CUDA devices read and write by themselves.
#pragma once

#include <cstddef>

namespace hybridgen::kernels {

/// Pins whole pages for all devices of this process, at their own addresses. Null: done; else why
/// the driver refuses, a static string.
const char* pin_host_cuda(void* address, std::size_t bytes);
/// What was pinned at that address.
void unpin_host_cuda(void* address);

}  // namespace hybridgen::kernels
