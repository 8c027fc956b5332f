// SPDX-License-Identifier: Apache-2.0
// Rows of GGUF files: blocks of quantised values, and how to take them apart. The layouts are those
// of ggml (ggml-common.h of llama.cpp), little-endian. Plain C++, one row at a time; nothing is
// allocated and no value of a block can make it read or write outside of what it was given.
#pragma once

#include <cstdint>
#include <span>

namespace hybridgen::kernels {

/// A type of tensors that is read.
struct GgufFormat {
  std::uint32_t id;           ///< of the file
  const char* name;           ///< ggml's
  std::int64_t block_values;  ///< 1 for plain numbers
  std::int64_t block_bytes;
  int bits;            ///< of a code: 4 or 8; 0 for plain numbers
  std::int64_t group;  ///< values of one scale; 0 for plain numbers
  bool has_minima;     ///< value = scale * code + minimum; else scale * code
};

/// All of them.
std::span<const GgufFormat> gguf_formats();

/// The format of an id, or nullptr if it is not read.
const GgufFormat* find_gguf_format(std::uint32_t id);

/// Takes a row of quantised blocks apart: value i = scales[i / group] * codes[i] (+
/// minima[i / group]), in float32, which is how ggml restores it.
///
/// `inputs` is a multiple of block_values, and `row` has inputs / block_values * block_bytes bytes.
/// `codes` [inputs]: Q4_0 -8 to 7, Q4_1 and Q4_K 0 to 15, Q5_K 0 to 31, Q6_K -32 to 31, Q8_0 -127
/// to 127 (a damaged file: -128). `scales` [inputs / group]; `minima` the same, unused without
/// minima.
void split_gguf_row(const GgufFormat& format,
                    const std::uint8_t* row,
                    std::int64_t inputs,
                    std::int8_t* codes,
                    float* scales,
                    float* minima);

/// Restores a row of any format to `values` [inputs]: bit for bit what ggml's own restoring gives.
void restore_gguf_row(const GgufFormat& format,
                      const std::uint8_t* row,
                      std::int64_t inputs,
                      float* values);

}  // namespace hybridgen::kernels
