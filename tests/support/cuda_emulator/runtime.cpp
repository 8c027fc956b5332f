// SPDX-License-Identifier: Apache-2.0
#include "support/cuda_emulator/runtime.h"

#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <utility>

#include "support/cuda_emulator/launch.h"
#include "support/cuda_emulator/shared_arena.h"

namespace {

// What cudaMalloc promises.
constexpr std::size_t kAlignment = 256;
constexpr int kUnwritten = 0xFF;

thread_local cudaError_t last_error = cudaSuccess;

std::mutex attributes_mutex;
std::map<const void*, std::size_t>& shared_bytes_by_kernel() {
  static std::map<const void*, std::size_t> bytes;
  return bytes;
}

std::mutex registered_mutex;
std::map<std::byte*, std::size_t>& registered() {
  static std::map<std::byte*, std::size_t> bytes;
  return bytes;
}

cudaError_t failed(cudaError_t error) {
  last_error = error;
  return error;
}

}  // namespace

namespace hybridgen::cuda_emulator {

void set_last_error(cudaError_t error) { last_error = error; }

std::size_t max_dynamic_shared_bytes(const void* kernel) {
  const std::lock_guard lock(attributes_mutex);
  const auto found = shared_bytes_by_kernel().find(kernel);
  return found == shared_bytes_by_kernel().end() ? kSharedBytesWithoutAsking : found->second;
}

}  // namespace hybridgen::cuda_emulator

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorHostMemoryAlreadyRegistered:
      return "cudaErrorHostMemoryAlreadyRegistered";
    case cudaErrorHostMemoryNotRegistered:
      return "cudaErrorHostMemoryNotRegistered";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorHostMemoryAlreadyRegistered:
      return "part or all of the requested memory range is already mapped";
    case cudaErrorHostMemoryNotRegistered:
      return "pointer does not correspond to a registered memory region";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) {
    last_error = cudaErrorInvalidValue;
    return last_error;
  }
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (posix_memalign(memory, kAlignment, bytes) != 0) return failed(cudaErrorMemoryAllocation);
  std::memset(*memory, kUnwritten, bytes);
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  std::free(memory);  // NOLINT(cppcoreguidelines-no-malloc)
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void* memory, std::size_t bytes, unsigned /*flags*/) {
  if (memory == nullptr || bytes == 0) return failed(cudaErrorInvalidValue);
  auto* const begin = static_cast<std::byte*>(memory);
  const std::lock_guard lock(registered_mutex);
  const auto after = registered().lower_bound(begin + bytes);
  if (after != registered().begin() && std::prev(after)->first + std::prev(after)->second > begin) {
    return failed(cudaErrorHostMemoryAlreadyRegistered);
  }
  registered()[begin] = bytes;
  return cudaSuccess;
}

cudaError_t cudaHostUnregister(void* memory) {
  const std::lock_guard lock(registered_mutex);
  const bool was_there = registered().erase(static_cast<std::byte*>(memory)) > 0;
  return was_there ? cudaSuccess : failed(cudaErrorHostMemoryNotRegistered);
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind /*kind*/) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(
    void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  hybridgen::cuda_emulator::run_on_stream(
      stream, [=] { static_cast<void>(cudaMemcpy(to, from, bytes, kind)); });
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      static_cast<std::size_t>(value) > hybridgen::cuda_emulator::kMaxSharedBytes) {
    return failed(cudaErrorInvalidValue);
  }
  const std::lock_guard lock(attributes_mutex);
  shared_bytes_by_kernel()[kernel] = static_cast<std::size_t>(value);
  return cudaSuccess;
}
