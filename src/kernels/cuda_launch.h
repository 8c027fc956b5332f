// SPDX-License-Identifier: Apache-2.0
// How kernels are started and declare shared memory, in words that nvcc and the host's compiler
// both take: the latter compiles the same sources for the kernel emulator of the tests
// (docs/cuda.md).
//
//   DEVICE_SHARED(float, sums, 32);      float sums[32] of the block; at block scope
//   DEVICE_DYNAMIC_SHARED(float, tile);  float* tile, aligned to 16; the launch says how many bytes
//
//   DEVICE_UNROLL for (...)              all of a loop's iterations, a constant number, in a row
//
//   launch(kernel<float>, grid, block, shared_bytes, stream, arguments...);
#pragma once

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#include <cstddef>

#define DEVICE_SHARED(type, name, count) __shared__ type name[count]

// One name for all types: declarations of `extern __shared__` that differ in type clash.
#define DEVICE_DYNAMIC_SHARED(type, name)                                  \
  extern __shared__ __align__(16) unsigned char dynamic_shared_of_block[]; \
  type* name = reinterpret_cast<type*>(dynamic_shared_of_block)

#define DEVICE_UNROLL _Pragma("unroll")

namespace hybridgen::kernels {

/// kernel<<<grid, block, shared_bytes, stream>>>(arguments...); errors as there.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...),
            dim3 grid,
            dim3 block,
            std::size_t shared_bytes,
            cudaStream_t stream,
            Arguments... arguments) {
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
}

}  // namespace hybridgen::kernels

#else

#include <cuda_emulator.h>

#define DEVICE_UNROLL

namespace hybridgen::kernels {

using cuda_emulator::launch;

}  // namespace hybridgen::kernels

#endif
