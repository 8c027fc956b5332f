// SPDX-License-Identifier: Apache-2.0
// The quantiser of a scoring shadow: what a channel's keys look like, and a key row as codes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hybridgen/core/types.h"

namespace hybridgen {

/// The least bfloat16 not below `value`, which is >= 0 and finite.
std::uint16_t round_up_to_bfloat16(float value);

/// out[d] = row[d] as float32.
void widen_row(DType dtype, const void* row, std::int64_t count, float* out);

/// Mean and standard deviation of each channel of `count` >= 1 rows [head_dim], `stride` elements
/// apart, without the few rows that lie far from all others. No spread is below 1/32 of the
/// channels' root mean square, so that a channel that was still so far may move later without
/// making its tokens' steps huge; all are 1 where no channel moves. Rows that hold infinity or NaN
/// do not count.
void measure_channels(DType dtype,
                      const void* rows,
                      std::int64_t count,
                      std::int64_t stride,
                      std::int64_t head_dim,
                      float* centres,
                      float* spreads);

/// codes[d] of x[d] = (row[d] - centres[d]) / spreads[d], such that x[d] is nearest to
/// step * (2 codes[d] - largest). Returns the step as a bfloat16: the least that holds every
/// element, or NaN where one is not finite.
std::uint16_t encode_row(const float* row,
                         const float* centres,
                         const float* spreads,
                         std::int64_t count,
                         int largest,
                         std::uint8_t* codes);

}  // namespace hybridgen
