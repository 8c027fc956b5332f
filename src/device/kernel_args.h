// SPDX-License-Identifier: Apache-2.0
// Tensors as the arguments of kernels that are alike on the CPU and on CUDA.
#pragma once

#include "device/coded_view.h"
#include "device/torch_types.h"
#include "kernels/coded_linear.h"
#include "kernels/cpu_kernels.h"

namespace hybridgen {

/// All [rows, F], of one dtype.
inline kernels::SiluGateArgs silu_gate_args(const at::Tensor& gate,
                                            const at::Tensor& up,
                                            at::Tensor& y) {
  kernels::SiluGateArgs args;
  args.dtype = to_dtype(gate.scalar_type());
  args.gate = gate.const_data_ptr();
  args.up = up.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.rows = gate.size(0);
  args.dim = gate.size(1);
  args.gate_stride = gate.stride(0);
  args.up_stride = up.stride(0);
  args.y_stride = y.stride(0);
  return args;
}

/// y [rows, outputs] = x [rows, inputs] weight^T + bias (may be undefined).
inline kernels::CodedLinearArgs coded_linear_args(const at::Tensor& x,
                                                  const LinearWeight& weight,
                                                  const at::Tensor& bias,
                                                  at::Tensor& y) {
  kernels::CodedLinearArgs args;
  args.weight = coded_view(weight);
  args.dtype = to_dtype(x.scalar_type());
  args.y_dtype = to_dtype(y.scalar_type());
  args.x = x.const_data_ptr();
  args.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
  args.y = y.mutable_data_ptr();
  args.rows = x.size(0);
  args.x_stride = x.stride(0);
  args.y_stride = y.stride(0);
  return args;
}

}  // namespace hybridgen
