// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "kernel_test_support.h"

namespace hybridgen::kernels::test {

/// Device memory with a copy of the given bytes.
class DeviceCopy {
 public:
  DeviceCopy(const void* data, std::size_t bytes) : bytes_(bytes) {
    if (bytes_ == 0) return;
    EXPECT_EQ(cudaMalloc(&data_, bytes_), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, data, bytes_, cudaMemcpyHostToDevice), cudaSuccess);
  }
  template <typename T>
  explicit DeviceCopy(const std::vector<T>& values)
      : DeviceCopy(values.data(), values.size() * sizeof(T)) {}
  explicit DeviceCopy(const Array& values)
      : DeviceCopy(values.data(),
                   static_cast<std::size_t>(values.count()) * size_of(values.dtype())) {}
  ~DeviceCopy() { cudaFree(data_); }
  DeviceCopy(const DeviceCopy&) = delete;
  DeviceCopy& operator=(const DeviceCopy&) = delete;

  template <typename T = void>
  T* get() const {
    return static_cast<T*>(data_);
  }
  void copy_to(void* host) const {
    if (bytes_ == 0) return;
    EXPECT_EQ(cudaMemcpy(host, data_, bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
  }
  template <typename T>
  std::vector<T> values() const {
    std::vector<T> copy(bytes_ / sizeof(T));
    copy_to(copy.data());
    return copy;
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace hybridgen::kernels::test
