// SPDX-License-Identifier: Apache-2.0
// Joins the two stand-ins for a GPU: CUDA kernels, compiled for the kernel emulator, run on the
// streams of an emulated device, over its memory.
#pragma once

#include <c10/core/Stream.h>
#include <cuda_runtime.h>

#include "emulated/device.h"

namespace hybridgen::testing {

/// While it lives, a launch on stream_handle(stream) is queued on that stream of the device and
/// runs when the device's mode says so, with the device's memory open to its raw pointers. One at a
/// time. The race checker does not learn what a kernel reads and writes.
class KernelsOnDevice {
 public:
  explicit KernelsOnDevice(emulated::Device& device);
  /// Waits for all work of the device.
  ~KernelsOnDevice();
  KernelsOnDevice(const KernelsOnDevice&) = delete;
  KernelsOnDevice& operator=(const KernelsOnDevice&) = delete;

  /// What a kernel's launch takes for `stream`, a stream of the device.
  static cudaStream_t stream_handle(c10::Stream stream);
};

}  // namespace hybridgen::testing
