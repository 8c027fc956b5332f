// SPDX-License-Identifier: Apache-2.0
// Weights of GPTQ and AWQ checkpoints: small integers packed into words of 32 bits, with a scale
// and a zero point for each output of each group of inputs. Plain C++; nothing is allocated.
#pragma once

#include <cstdint>

namespace hybridgen::kernels {

/// Where the integers lie in their words, of `per` = 32 / bits integers each, lowest bits first.
enum class PackedLayout : std::uint8_t {
  kGptq,  ///< words [inputs / per, outputs], each `per` inputs of one output
  kAwq,   ///< words [inputs, outputs / per], each `per` outputs of one input: 0 2 4 6 1 3 5 7
};

/// weight(o, i) = scale(g, o) * (code(o, i) - zero(g, o)) with g the group of input i.
struct PackedIntegers {
  PackedLayout layout = PackedLayout::kGptq;
  int bits = 4;  ///< 4 or 8; AWQ: 4
  std::int64_t inputs = 0;
  std::int64_t outputs = 0;  ///< a multiple of 32 / bits
  std::int64_t groups = 0;
  const std::int32_t* codes = nullptr;
  const std::int32_t* zeros =
      nullptr;                    ///< [groups, outputs / per], interleaved as codes of AWQ are
  int zero_offset = 0;            ///< what to add to a stored zero: 1 in GPTQ's first format
  const float* scales = nullptr;  ///< [groups, outputs]
  const std::int32_t* group_of_input = nullptr;  ///< [inputs]
};

/// Throws CheckpointError unless every size fits and every input's group is one that there is.
void check(const PackedIntegers& packed);

/// Rows [first, first + count) of the matrix as codes [count, inputs], 0 to 2^bits - 1.
void unpack_codes(const PackedIntegers& packed,
                  std::int64_t first,
                  std::int64_t count,
                  std::uint8_t* codes);

/// The zero points of an output: [groups], 0 to 2^bits - 1.
void unpack_zeros(const PackedIntegers& packed, std::int64_t output, std::uint8_t* zeros);

/// Restores row `output` from its codes [inputs] and zero points [groups] to `values` [inputs],
/// multiplied once in float32: exact, if the scales are float16 or bfloat16.
void restore_packed_row(const PackedIntegers& packed,
                        std::int64_t output,
                        const std::uint8_t* codes,
                        const std::uint8_t* zeros,
                        float* values);

}  // namespace hybridgen::kernels
