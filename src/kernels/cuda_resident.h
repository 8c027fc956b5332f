// SPDX-License-Identifier: Apache-2.0
// What a decode step does to resident tokens beside attention, on the device, for all requests of a
// micro-batch. Each call is one launch on `stream`, as in cuda_rows.h.
#pragma once

#include <cstdint>

#include "hybridgen/core/types.h"
#include "kernels/decode_rows.h"

namespace hybridgen::kernels {

/// The newest token's key and value take another's slot, per layer and KV head.
struct MoveRows {
  DType dtype = DType::kFloat32;
  const StepRow* rows = nullptr;        ///< [batch]
  const std::int32_t* slots = nullptr;  ///< [batch, num_layers, num_kv_heads]; -1: stays
  std::int64_t batch = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
};
void move_rows_cuda(const MoveRows& args, void* stream);

/// CpuKernels::rotate of copies: the layer's keys become StepRow::turned_keys of every row that has
/// some.
struct TurnKeys {
  DType dtype = DType::kFloat32;
  const StepRow* rows = nullptr;  ///< [batch]
  std::int64_t batch = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t layer = 0;
  std::int64_t max_resident = 0;   ///< of the rows
  const float* cosines = nullptr;  ///< [.., head_dim / 2]
  const float* sines = nullptr;
};
void turn_keys_cuda(const TurnKeys& args, void* stream);

}  // namespace hybridgen::kernels
