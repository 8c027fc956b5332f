// SPDX-License-Identifier: Apache-2.0
#include "support/kernels_on_device.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <utility>

#include "emulated/backend.h"
#include "support/cuda_emulator/launch.h"

namespace hybridgen::testing {
namespace {

emulated::Device* device_of_kernels = nullptr;

// A handle is the stream's number: that of the default stream is null, as in CUDA.
void enqueue(cudaStream_t stream, std::function<void()> run) {
  emulated::Device& device = *device_of_kernels;
  device.count_launch();
  device.enqueue(
      {.name = "kernel",
       .stream = static_cast<emulated::StreamIndex>(reinterpret_cast<std::uintptr_t>(stream)),
       .reads = {},
       .writes = {}},
      [&device, run = std::move(run)] {
        const emulated::DeviceMemory::Opened opened(device.memory());
        run();
      });
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
  // NOLINTNEXTLINE(performance-no-int-to-ptr): an opaque handle
  return reinterpret_cast<cudaStream_t>(static_cast<std::uintptr_t>(emulated::index_of(stream)));
}

}  // namespace hybridgen::testing
