// SPDX-License-Identifier: Apache-2.0
// CUDA twins of the CPU kernels. Device pointers, sizes and a stream; no Torch, no policy. Calls
// enqueue on `stream` and return; nothing is synchronised. Compiled whenever nvcc is there; a build
// without it has the same symbols, which throw DeviceError.
#pragma once

#include <cstdint>

#include "hybridgen/core/types.h"

namespace hybridgen::kernels {

/// One (request, KV head) of a batch; arrays of these lie in device memory. Meaning of the fields:
/// BlockedLogitsArgs and SoftmaxValuesArgs of cpu_kernels.h.
struct MergeSegment {
  const float* host_logits = nullptr;  ///< [num_queries, host_count] contiguous
  std::int64_t host_count = 0;
  const float* resident_logits = nullptr;  ///< [num_queries, resident_count] contiguous
  std::int64_t resident_count = 0;
  float* logits = nullptr;  ///< [num_queries, host_count + resident_count] contiguous, written
  const std::int32_t* host_index = nullptr;  ///< null: row j of host_values is token j's
  const void* host_values = nullptr;
  const void* resident_values = nullptr;
  std::int64_t resident_stride = 0;
  void* out = nullptr;   ///< [num_queries, D] contiguous
  float* lse = nullptr;  ///< [num_queries] natural log-sum-exp of the logits, or null
};

/// Whether this build holds CUDA kernels.
bool has_cuda_kernels();
/// Devices that can be used right now; 0 without a driver (never throws).
int cuda_device_count();
/// 10 times the major plus the minor number, as in sm_80; 0 without such a device (never throws).
int cuda_compute_capability(int device);
inline constexpr int kLeastComputeCapability = 80;  ///< of the code that a build contains

/// concat_logits of every segment. `segments` [num_segments] in device memory.
void concat_logits_cuda(const MergeSegment* segments,
                        std::int64_t num_segments,
                        std::int64_t num_queries,
                        std::int64_t max_tokens,
                        void* stream);

/// softmax_values of every segment, logits as left by concat_logits_cuda.
void softmax_values_cuda(const MergeSegment* segments,
                         std::int64_t num_segments,
                         std::int64_t num_queries,
                         std::int64_t head_dim,
                         DType dtype,
                         std::int64_t max_tokens,
                         void* stream);

}  // namespace hybridgen::kernels
