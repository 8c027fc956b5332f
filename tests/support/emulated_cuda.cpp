// SPDX-License-Identifier: Apache-2.0
#include "support/emulated_cuda.h"

#include <ATen/detail/CUDAHooksInterface.h>
#include <gtest/gtest.h>

#include "emulated/backend.h"

namespace hybridgen::testing {
namespace {

#if HYBRIDGEN_TORCH_HAS_CUDA
constexpr auto kType = c10::kPrivateUse1;
constexpr const char* kName = "emulated";
#else
constexpr auto kType = c10::kCUDA;
constexpr const char* kName = "cuda";

// LibTorch looks them up by this name, once, when it first asks for CUDA.
class CUDAHooks final : public at::CUDAHooksInterface {
 public:
  explicit CUDAHooks(at::CUDAHooksArgs /*none*/) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex /*index*/) const override { return true; }
  int getNumGPUs() const override { return emulated::device_count(c10::kCUDA); }
  c10::DeviceIndex deviceCount() const override { return emulated::device_count(c10::kCUDA); }
  c10::DeviceIndex current_device() const override { return emulated::current_device(c10::kCUDA); }
  c10::DeviceIndex getCurrentDevice() const override { return current_device(); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    return emulated::exchange_device(c10::kCUDA, index);
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return emulated::exchange_device(c10::kCUDA, index);
  }
  void setCurrentDevice(c10::DeviceIndex index) const override {
    emulated::exchange_device(c10::kCUDA, index);
  }
  void deviceSynchronize(c10::DeviceIndex index) const override {
    emulated::device_of({c10::kCUDA, index}).host_wait_for_all();
  }
  bool isPinnedPtr(const void* address) const override { return emulated::is_pinned(address); }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    return &emulated::pinned_allocator();
  }
};

using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, CUDAHooks)
#endif

emulated::Device& registered_device() {
  emulated::register_backend(kType);
  return emulated::device_of({kType, 0});
}

}  // namespace

EmulatedCuda::EmulatedCuda(emulated::Mode mode) : EmulatedCuda(options(mode)) {}

EmulatedCuda::EmulatedCuda(const emulated::DeviceOptions& options)
    : name_(kName), device_(registered_device()) {
  device_.configure(options);
  device_.reset_counters();
}

EmulatedCuda::~EmulatedCuda() {
  try {
    device_.configure(options(emulated::Mode::kEager));
  } catch (const std::exception& error) {
    ADD_FAILURE() << "an operation of the device failed: " << error.what();
  }
}

emulated::DeviceOptions EmulatedCuda::options(emulated::Mode mode) {
  emulated::DeviceOptions options;
  options.mode = mode;
  options.poison = true;
  return options;
}

}  // namespace hybridgen::testing
