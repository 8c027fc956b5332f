// SPDX-License-Identifier: Apache-2.0
#include "support/kernels_on_device.h"

#include <gtest/gtest.h>

#include <exception>
#include <functional>
#include <utility>

#include "emulated/backend.h"
#include "support/cuda_emulator/launch.h"

namespace hybridgen::testing {
namespace {

emulated::Device* device_of_kernels = nullptr;

// A handle is what LibTorch says; null is the default stream, as in CUDA.
void enqueue(cudaStream_t stream, std::function<void()> run) {
  const auto* handle = reinterpret_cast<const emulated::StreamHandle*>(stream);
  device_of_kernels->launch(handle == nullptr ? 0 : handle->stream, "kernel", std::move(run));
}

}  // namespace

KernelsOnDevice::KernelsOnDevice(emulated::Device& device) {
  device_of_kernels = &device;
  cuda_emulator::set_enqueue(enqueue);
}

KernelsOnDevice::~KernelsOnDevice() {
  try {
    device_of_kernels->host_wait_for_all();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "nobody waited for a kernel that failed: " << error.what();
  }
  cuda_emulator::set_enqueue(nullptr);
}

cudaStream_t KernelsOnDevice::stream_handle(c10::Stream stream) {
  return static_cast<cudaStream_t>(stream.native_handle());
}

}  // namespace hybridgen::testing
