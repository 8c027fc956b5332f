// SPDX-License-Identifier: Apache-2.0
// Rows in 8 or 4 bits that need nothing but themselves: which tokens were written before, together
// or in what order changes no byte. FlexGen's cache compression (arXiv 2303.06865, section 4:
// groups of 64 along the head dimension, minimum and maximum of each), with bfloat16 instead of
// float16 for the two, because a bfloat16 model's rows may lie beyond what float16 can hold.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hybridgen/core/kv_views.h"
#include "hybridgen/core/types.h"

namespace hybridgen {

/// Writes one row [head_dim] of `dtype` as quantised_row_bytes(precision, head_dim) bytes, laid out
/// as QuantisedRowView says. Every element is held to half a step of its group, where a step is the
/// group's range, from its minimum rounded down to bfloat16, over 255 or 15, rounded up to
/// bfloat16. A step below the smallest normal float32 counts as 0. A group that holds infinity or
/// NaN, or whose range float32 cannot hold twice, is NaN throughout, so that it is noticed.
void quantise_row(
    KvPrecision precision, DType dtype, const void* row, std::int64_t head_dim, std::byte* out);

}  // namespace hybridgen
