// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda_host_pins.h"
#include "kernels/cuda_launch.h"

namespace hybridgen::kernels {

const char* pin_host_cuda(void* address, std::size_t bytes) {
  const cudaError_t error =
      cudaHostRegister(address, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // nobody else's
  return cudaGetErrorString(error);
}

void unpin_host_cuda(void* address) {
  if (cudaHostUnregister(address) != cudaSuccess) cudaGetLastError();
}

}  // namespace hybridgen::kernels
