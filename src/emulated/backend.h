// SPDX-License-Identifier: Apache-2.0
// Emulated devices as a backend of LibTorch: guard, allocators and operators for one device type,
// so that whatever speaks LibTorch's device-generic interface runs on them unchanged.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include "emulated/device.h"

namespace hybridgen::emulated {

/// Registers guard, allocator and operators for `type`, once per process: device 0, without a clock
/// and, of kPrivateUse1, one for each machine that is registered (emulated/machine_profile.h). For
/// kPrivateUse1 also its name "emulated" and its hooks; those of kCUDA must be registered when the
/// program starts (tests/support/emulated_cuda.cpp).
void register_backend(c10::DeviceType type);
bool is_registered(c10::DeviceType type);

/// The emulated device behind `device`, which was registered.
Device& device_of(c10::Device device);
/// Queues of the stream's device.
StreamIndex index_of(c10::Stream stream);

/// Host memory that copies read and write while the host goes on.
c10::Allocator& pinned_allocator();
bool is_pinned(const void* address);
/// Makes other host memory such, as cudaHostRegister does. False: some of it is already.
bool pin(void* address, std::size_t bytes);
/// What was made such from that address on.
void unpin(void* address);
/// How many ranges are made such now.
std::size_t num_pinned();
at::Tensor empty_pinned(at::IntArrayRef shape, at::ScalarType type);

/// What a backend's hooks answer.
c10::DeviceIndex device_count(c10::DeviceType type);
c10::DeviceIndex current_device(c10::DeviceType type);
c10::DeviceIndex exchange_device(c10::DeviceType type, c10::DeviceIndex index);
/// The stream on which work of the calling thread is queued.
c10::Stream current_stream(c10::Device device);

}  // namespace hybridgen::emulated
