// SPDX-License-Identifier: Apache-2.0
// Which code multiplies x by a weight on a CPU device. Few rows read the weight once and are bound
// by that; many are bound by arithmetic. docs/kernels.md, "Linear layers", has what was measured.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "device/device_ops.h"
#include "kernels/cpu_kernels.h"

namespace hybridgen {

enum class LinearForm : std::uint8_t {
  kStreamed,  ///< CpuKernels::linear
  kPrepared,  ///< CpuKernels::prepared_linear
  kOneDnn,
  kLibTorch,
};

/// Up to so many rows, a decode step's, LibTorch's threads stay out of an operation.
inline constexpr std::int64_t kMostStepRows = 64;

/// The form for `rows` rows of x and a weight of `dtype`, where y has `y_dtype`. Rows of a step
/// stay with one form as long as it pays: a request then gets the same bits alone and beside
/// others.
LinearForm linear_form(
    kernels::Isa isa, DType dtype, DType y_dtype, RowsOf rows_of, std::int64_t rows);

/// y = x weight^T + bias by oneDNN or LibTorch, on LibTorch's threads; `args` are the same
/// operands. False where they lack memory: both want some for code and scratch, and one of oneDNN's
/// kernels that once got none refuses for as long as the process lives. Then ours, which wants
/// none, takes over, here and for every later call that fails. Whatever else they throw, of shapes
/// that do not match for example, is thrown on.
bool library_linear(LinearForm form,
                    const at::Tensor& x,
                    const at::Tensor& weight,
                    const at::Tensor& bias,
                    at::Tensor& y,
                    const kernels::LinearArgs& args);

}  // namespace hybridgen
