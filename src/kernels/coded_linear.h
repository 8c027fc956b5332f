// SPDX-License-Identifier: Apache-2.0
// Products of rows with coded weights (coded_rows.h), which are read as they lie. A table per
// instruction set of its own, beside cpu_kernels.h, whose rules hold here too: raw pointers in and
// out, no threads, no allocation.
//
// x is rounded once per call: to 16-bit integers with a float32 scale per block of 16 (8 bits) or
// 32 (4 bits) inputs, so that an element is off by at most 2^-16 of the largest of its block. Sums
// of a block are then exact integers; blocks are added in float32 in one order, so that an output
// is the same bits on every instruction set, whatever the other rows and the split of outputs.
// NaN or infinity in a row of x makes that row's outputs NaN.
#pragma once

#include <cstdint>

#include "hybridgen/core/types.h"
#include "kernels/coded_rows.h"
#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {

/// y[r, n] = sum_k x[r, k] * value(n, k) + bias[n]   for r in [0, rows), n in [begin, end).
struct CodedLinearArgs {
  CodedWeightView weight;
  DType dtype = DType::kFloat32;    ///< of x and bias
  DType y_dtype = DType::kFloat32;  ///< equal to dtype, or kFloat32
  const void* x = nullptr;          ///< [rows, inputs], row stride x_stride
  const void* bias = nullptr;       ///< [outputs] or null
  void* y = nullptr;                ///< [rows, outputs], row stride y_stride
  std::int64_t rows = 0;
  std::int64_t x_stride = 0;
  std::int64_t y_stride = 0;
};

/// values [count, inputs] of `dtype` from outputs [first, first + count), as restore_row has them,
/// rounded once.
struct RestoreRowsArgs {
  CodedWeightView weight;
  DType dtype = DType::kFloat32;
  std::int64_t first = 0;
  std::int64_t count = 0;
  void* values = nullptr;  ///< row stride: inputs
};

/// Function table of one instruction set.
struct CodedKernels {
  /// Bytes of the rows of x as codes, aligned to cache lines.
  std::int64_t (*rows_bytes)(const CodedLinearArgs& args) = nullptr;
  /// Rows [begin, end) of x into their place in `prepared`.
  void (*prepare_rows)(const CodedLinearArgs& args,
                       std::int64_t begin,
                       std::int64_t end,
                       void* prepared) = nullptr;
  void (*multiply)(const CodedLinearArgs& args,
                   const void* prepared,
                   std::int64_t begin,
                   std::int64_t end) = nullptr;
  void (*restore_rows)(const RestoreRowsArgs& args) = nullptr;
};

/// ConfigError where the CPU lacks `isa`.
const CodedKernels& coded_kernels(Isa isa);

}  // namespace hybridgen::kernels
