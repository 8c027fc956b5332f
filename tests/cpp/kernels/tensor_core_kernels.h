// SPDX-License-Identifier: Apache-2.0
// One kernel for each instruction of kernels/cuda_tensor_core.h. Device pointers.
#pragma once

#include <cstdint>

#include "hybridgen/core/types.h"

namespace hybridgen::kernels::test {

/// c [16, 8] += a [16, 16] b [16, 8], row-major, a and b of dtype float16 or bfloat16.
void multiply_on_tensor_core(DType dtype, const void* a, const void* b, float* c);

/// out[lane * 4 + j]: what a lane gets of four matrices [8, 8] of 16-bit elements.
void load_four_matrices(const std::uint16_t* matrices, bool is_transposed, std::uint32_t* out);

/// out = in, in pieces of 16 bytes, through shared memory that is filled two pieces ahead; the last
/// piece has `last_bytes`, the rest of it becomes zero.
void copy_through_shared(const float* in, int pieces, int last_bytes, float* out);

}  // namespace hybridgen::kernels::test
