// SPDX-License-Identifier: Apache-2.0
// Weights held as codes of 8 or 4 bits: how the codes of a row lie, and the plain reference for
// writing and reading them. A matrix [outputs, inputs] is coded row by row, in groups of inputs:
//
//   value(o, i) = scale(o, i / group) * number(o, i) + minimum(o, i / group)      in float32
//
//   bits 8: number = code, -128 to 127
//   bits 4: number = code, 0 to 15, where there are minima; code - 8 where there are none
//
// A row is whole blocks of 16 bytes, an even count of them, so that its bytes divide by 32:
//
//   bits 8: a block is 16 inputs in order, two's complement
//   bits 4: a block is 32 inputs; byte j holds input j in its low and input j + 16 in its high
//           half (as the blocks of GGUF's Q4_0 and Q4_1 do)
//
// Codes beyond the last input are 0. Scales and minima are [outputs, groups], float16 or float32,
// contiguous; the last group may be short. A group is all inputs, or a multiple of a block's.
#pragma once

#include <cstdint>

#include "hybridgen/core/types.h"

namespace hybridgen::kernels {

/// A coded matrix where it lies. A range of its outputs is one too: `from`.
struct CodedWeightView {
  int bits = 8;  ///< 8 or 4
  std::int64_t group = 0;
  std::int64_t inputs = 0;
  const std::uint8_t* codes = nullptr;  ///< row o at codes + o * coded_row_bytes(bits, inputs)
  DType scale_dtype = DType::kFloat32;  ///< of scales and minima: kFloat16 or kFloat32
  const void* scales = nullptr;         ///< [outputs, groups]
  const void* minima = nullptr;         ///< the same, or null: symmetric

  /// Outputs `first` and beyond.
  CodedWeightView from(std::int64_t first) const;
};

/// Inputs of a block of 16 bytes: 16 of 8 bits, 32 of 4 bits.
constexpr std::int64_t coded_block(int bits) { return 128 / bits; }

constexpr std::int64_t coded_row_bytes(int bits, std::int64_t inputs) {
  const std::int64_t pair = 2 * coded_block(bits);
  return (inputs + pair - 1) / pair * 32;
}

constexpr std::int64_t coded_groups(std::int64_t inputs, std::int64_t group) {
  return (inputs + group - 1) / group;
}

/// Whether rows can be coded so: 8 or 4 bits; a group of all inputs, or of whole blocks.
constexpr bool is_coded_shape(int bits, std::int64_t inputs, std::int64_t group) {
  return (bits == 8 || bits == 4) && inputs > 0 && group > 0 &&
         (group == inputs || group % coded_block(bits) == 0);
}

/// Codes [inputs] (-128 to 127, or 0 to 15) into a row of coded_row_bytes.
void pack_row(int bits, const std::int8_t* codes, std::int64_t inputs, std::uint8_t* row);

/// The inverse.
void unpack_row(int bits, const std::uint8_t* row, std::int64_t inputs, std::int8_t* codes);

/// The values [inputs] of row `output`, as float32 computes them: one product, one sum.
void restore_row(const CodedWeightView& weight, std::int64_t output, float* values);

/// How a row of numbers becomes codes.
struct CodedFormat {
  int bits = 8;
  std::int64_t group = 0;   ///< see is_coded_shape
  bool has_minima = false;  ///< of 4 bits
  DType scale_dtype = DType::kFloat32;
  friend bool operator==(const CodedFormat&, const CodedFormat&) = default;
};

/// Codes a row [inputs] into coded_row_bytes of codes, and its groups' scales (and minima).
///   bits 8: scale = largest magnitude / 127
///   bits 4: scale = the element of the largest magnitude / -8, so that it is exact and all 16
///           codes are used (the rule of Q4_0)
///   minima: from the smallest to the largest element in 15 steps
/// Codes are nearest to the values by the scale as it is stored. False, with undefined contents,
/// where an element is NaN or infinite, or scale_dtype cannot hold a scale or minimum.
bool quantise_row(const CodedFormat& format,
                  const float* row,
                  std::int64_t inputs,
                  std::uint8_t* codes,
                  void* scales,
                  void* minima);

}  // namespace hybridgen::kernels
