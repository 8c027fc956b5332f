// SPDX-License-Identifier: Apache-2.0
// Quantised tensors of files: restored to numbers, or held as the codes that they are. Rows are
// shared among LibTorch's threads. Files are not trusted: sizes are checked before anything is
// read.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "hybridgen/core/types.h"
#include "kernels/packed_integers.h"

namespace hybridgen {

/// A matrix as codes, in the layout of kernels/coded_rows.h.
struct CodedTensors {
  at::Tensor codes;   ///< uint8 [outputs, coded_row_bytes]
  at::Tensor scales;  ///< [outputs, groups], float16 or float32
  at::Tensor minima;  ///< the same, or undefined: symmetric
  int bits = 8;
  std::int64_t group = 0;
};

/// Rows of a GGUF tensor, uint8 [outputs, bytes of a row], as numbers [outputs, inputs].
/// CheckpointError for a format that is not read, or rows that are not whole blocks.
at::Tensor restore_gguf(std::uint32_t format, const at::Tensor& rows, DType dtype);

/// The same as codes: exact. float16 scales stay float16; products of scales become float32.
/// CheckpointError as restore_gguf; for plain numbers; for NaN or infinity among scales and minima.
CodedTensors split_gguf(std::uint32_t format, const at::Tensor& rows);

/// A matrix of a GPTQ or AWQ checkpoint.
struct PackedTensors {
  kernels::PackedLayout layout = kernels::PackedLayout::kGptq;
  int bits = 4;
  at::Tensor codes;           ///< int32; see kernels::PackedLayout for shapes
  at::Tensor zeros;           ///< int32 [groups, outputs * bits / 32]
  at::Tensor scales;          ///< [groups, outputs], any floating dtype
  at::Tensor group_of_input;  ///< int32 [inputs]
  int zero_offset = 0;        ///< added to each stored zero, within its bits
};

/// As numbers [outputs, inputs]. CheckpointError for shapes that contradict each other, and groups
/// that there are not.
at::Tensor restore_packed(const PackedTensors& packed, DType dtype);

/// As codes with minima: exact where scales are float16 or bfloat16. Inputs of a group must stand
/// together, in groups of one size (`group`), which is_coded_shape must allow: else
/// CheckpointError.
CodedTensors split_packed(const PackedTensors& packed, std::int64_t group);

}  // namespace hybridgen
