// SPDX-License-Identifier: Apache-2.0
// What our CUDA kernels share: numbers in float32 whatever they lie as, combinations over a warp
// and a block, and the check of a launch. For .cu files alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "hybridgen/core/error.h"
#include "hybridgen/core/types.h"
#include "kernels/cuda_launch.h"

namespace hybridgen::kernels {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffU;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void store(float* to, float value) { *to = value; }
__device__ __forceinline__ void store(__half* to, float value) { *to = __float2half_rn(value); }
__device__ __forceinline__ void store(__nv_bfloat16* to, float value) {
  *to = __float2bfloat16_rn(value);
}

struct Larger {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};

/// The combination over the lanes of a warp, in every lane. All 32 call it.
template <typename Combine>
__device__ __forceinline__ float combine_warp(float value, Combine combine) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

/// The combination over all threads of a block of whole warps along x, in every thread; two
/// barriers. `shared` has room for one value per warp.
template <typename Combine>
__device__ float combine_block(float value, float* shared, Combine combine) {
  value = combine_warp(value, combine);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread % kWarp == 0) shared[thread / kWarp] = value;
  __syncthreads();
  value = shared[0];
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int warp = 1; warp < warps; ++warp) value = combine(value, shared[warp]);
  __syncthreads();
  return value;
}

/// Throws DeviceError if the last launch was refused.
inline void check_launch(const char* operation) {
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw DeviceError(message("[",
                              operation,
                              "] launch gave ",
                              cudaGetErrorName(status),
                              " (",
                              cudaGetErrorString(status),
                              "); allowed: cudaSuccess; see the device with nvidia-smi or choose "
                              "the device \"cpu\""));
  }
}

/// Calls `launch` with a null pointer to the type of `dtype`'s numbers.
template <typename Launch>
void with_type_of(DType dtype, Launch launch) {
  switch (dtype) {
    case DType::kFloat32:
      launch(static_cast<float*>(nullptr));
      break;
    case DType::kFloat16:
      launch(static_cast<__half*>(nullptr));
      break;
    case DType::kBFloat16:
      launch(static_cast<__nv_bfloat16*>(nullptr));
      break;
  }
}

}  // namespace hybridgen::kernels
