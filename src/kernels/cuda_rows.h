// SPDX-License-Identifier: Apache-2.0
// What a decode step does row by row between matrix products, on the device: norms, what stands
// between the q k v projection and attention, and the element-wise rest. Device pointers, sizes and
// a stream, as in cuda_kernels.h: each call is one launch on `stream`, whatever its sizes, nothing
// is synchronised, and without nvcc it throws DeviceError. Strides count elements. Sizes of 0 do
// nothing. Numbers are widened to float32 and rounded where the CPU twin rounds them.
#pragma once

#include <cstdint>

#include "hybridgen/core/types.h"
#include "kernels/cpu_kernels.h"
#include "kernels/decode_rows.h"

namespace hybridgen::kernels {

/// CpuKernels::rms_norm or layer_norm of every head of every row, with what surrounds a norm.
struct NormRows {
  DType dtype = DType::kFloat32;
  void* x = nullptr;  ///< [rows, heads, dim], row stride x_stride; written only with an addend
  /// Laid out as x, row stride addend_stride: first x += addend, as CpuKernels::add; null: none.
  const void* addend = nullptr;
  const void* weight = nullptr;  ///< [dim]
  const void* bias = nullptr;    ///< [dim], layer norm only; null: 0
  void* y = nullptr;             ///< as x, row stride y_stride; may be x
  /// The same x, normalised once, times another weight: as y, row stride second_y_stride, neither
  /// x nor y; null: unwanted.
  void* second_y = nullptr;
  const void* second_weight = nullptr;
  const void* second_bias = nullptr;
  bool is_layer_norm = false;
  std::int64_t rows = 0;
  std::int64_t heads = 1;
  std::int64_t dim = 0;
  std::int64_t x_stride = 0;
  std::int64_t addend_stride = 0;
  std::int64_t y_stride = 0;
  std::int64_t second_y_stride = 0;
  float eps = 1e-5F;
};
void norm_rows_cuda(const NormRows& args, void* stream);

/// From the q k v projection to what attention reads, in place: CpuKernels::rms_norm of each head
/// where there is a weight, then CpuKernels::rotate, then a copy of the new keys and values to
/// where the requests' resident tokens lie.
struct HeadsOfRows {
  DType dtype = DType::kFloat32;
  void* query = nullptr;        ///< [rows, num_heads, head_dim]; null: none
  void* key = nullptr;          ///< [rows, num_kv_heads, head_dim]; null: none
  const void* value = nullptr;  ///< as key; null: none
  std::int64_t rows = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t query_stride = 0;  ///< from a row to the next
  std::int64_t key_stride = 0;
  std::int64_t value_stride = 0;
  const void* query_norm = nullptr;  ///< [head_dim]; null: no norm
  const void* key_norm = nullptr;
  float eps = 1e-5F;
  const std::int64_t* rotation_rows = nullptr;  ///< [rows] rows of the tables
  const float* cosines = nullptr;               ///< [.., head_dim / 2]; null: no rotation
  const float* sines = nullptr;
  bool rotate_key = true;
  /// [rows]. Key and value go to slot first_slot + num_resident - 1 of `layer`, unless num_resident
  /// is 0. Null: they stay where they are.
  const StepRow* step_rows = nullptr;
  std::int64_t layer = 0;
};
void place_heads_cuda(const HeadsOfRows& args, void* stream);

/// y[r] = table[ids[r] + offset].
struct SelectRows {
  DType dtype = DType::kFloat32;
  const void* table = nullptr;        ///< [.., dim] contiguous
  const std::int64_t* ids = nullptr;  ///< [rows], on the device; unchecked
  std::int64_t offset = 0;
  void* y = nullptr;  ///< [rows, dim], row stride y_stride
  std::int64_t rows = 0;
  std::int64_t dim = 0;
  std::int64_t y_stride = 0;
};
void select_rows_cuda(const SelectRows& args, void* stream);

/// CpuKernels::silu_gate. y may be gate or up.
void silu_gate_cuda(const SiluGateArgs& args, void* stream);
/// CpuKernels::relu of `count` numbers beside each other.
void relu_cuda(DType dtype, void* x, std::int64_t count, void* stream);
/// CpuKernels::add: y += x.
void add_cuda(DType dtype, void* y, const void* x, std::int64_t count, void* stream);

}  // namespace hybridgen::kernels
