// SPDX-License-Identifier: Apache-2.0
#include "device/device_context.h"

#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "device/device_pins.h"
#include "emulated/backend.h"
#include "emulated/machine_profile.h"
#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

[[noreturn]] void refuse_name(const std::string& name) {
  throw ConfigError(
      message("[device] '",
              name,
              "' is not known; allowed: cpu, cuda, cuda:N, emulated, emulated:N (N: a registered "
              "machine)"));
}

// N of "TYPE:N", 0 of "TYPE"; none if `name` is of another type.
std::optional<int> index_in(const std::string& name, const std::string& type) {
  if (name == type) {
    return 0;
  }
  if (!name.starts_with(type + ":")) {
    return std::nullopt;
  }
  const std::string digits = name.substr(type.size() + 1);
  if (digits.empty() || digits.size() > 3 ||
      digits.find_first_not_of("0123456789") != std::string::npos) {
    refuse_name(name);
  }
  return std::stoi(digits);
}

at::Device parse_cuda(const std::string& name, int index) {
  if (!c10::impl::hasDeviceGuardImpl(at::kCUDA)) {
    throw DeviceError(message("[device] '",
                              name,
                              "' is not there: the installed torch is a CPU build; install a CUDA "
                              "build of torch or use device='cpu'"));
  }
  const int count = c10::impl::VirtualGuardImpl(at::kCUDA).deviceCount();
  if (index >= count) {
    throw DeviceError(message("[device] '",
                              name,
                              "' is not there: torch sees ",
                              count,
                              " CUDA device(s); use ",
                              count > 0 ? message("cuda:0 to cuda:", count - 1, " or ") : "",
                              "device='cpu'"));
  }
  return {at::kCUDA, static_cast<c10::DeviceIndex>(index)};
}

at::Device parse_emulated(const std::string& name, int index) {
  if (index > emulated::num_machines()) {
    throw DeviceError(message("[device] '",
                              name,
                              "' is not there: ",
                              emulated::num_machines(),
                              " machine profile(s) are registered; register one or use "
                              "device='emulated', which has no clock"));
  }
  // Not before somebody asks for it: LibTorch then prefers this device where it looks for any.
  emulated::register_backend(at::kPrivateUse1);
  return {at::kPrivateUse1, static_cast<c10::DeviceIndex>(index)};
}

at::Device parse_device(const std::string& name) {
  if (name == "cpu") {
    return at::kCPU;
  }
  if (const auto index = index_in(name, "cuda")) {
    return parse_cuda(name, *index);
  }
  if (const auto index = index_in(name, "emulated")) {
    return parse_emulated(name, *index);
  }
  refuse_name(name);
}

}  // namespace

DeviceContext::DeviceContext(const std::string& name)
    : device_(parse_device(name)), pins_(device_pins(device_)) {
  if (!is_cpu()) {
    const c10::impl::VirtualGuardImpl guard(device_.type());
    compute_ = guard.getStreamFromGlobalPool(device_, /*isHighPriority=*/true);
    copy_ = guard.getStreamFromGlobalPool(device_, /*isHighPriority=*/false);
  }
}

void DeviceContext::enter_compute() const {
  if (compute_) {
    const c10::impl::VirtualGuardImpl guard(device_.type());
    guard.setDevice(device_);
    guard.exchangeStream(*compute_);
  }
}

std::unique_ptr<c10::StreamGuard> DeviceContext::use_compute() const {
  return compute_ ? std::make_unique<c10::StreamGuard>(*compute_) : nullptr;
}

std::unique_ptr<c10::StreamGuard> DeviceContext::use_copy() const {
  return copy_ ? std::make_unique<c10::StreamGuard>(*copy_) : nullptr;
}

at::Tensor pinned_for(at::Device device, at::IntArrayRef shape, at::ScalarType type) {
  if (device.is_privateuseone()) {
    // LibTorch would ask CUDA for it where there is one.
    return emulated::empty_pinned(shape, type);
  }
  return at::empty(shape, at::TensorOptions().dtype(type).pinned_memory(!device.is_cpu()));
}

at::Tensor DeviceContext::host_staging(at::IntArrayRef shape, at::ScalarType type) const {
  return pinned_for(device_, shape, type);
}

void DeviceContext::record_compute(std::optional<c10::Event>& event) const {
  if (compute_) {
    if (!event) {
      event.emplace(device_.type());
    }
    event->record(*compute_);
  }
}

void DeviceContext::record_copy(std::optional<c10::Event>& event) const {
  if (copy_) {
    if (!event) {
      event.emplace(device_.type());
    }
    event->record(*copy_);
  }
}

void DeviceContext::compute_waits(const std::optional<c10::Event>& event) const {
  if (compute_ && event) {
    event->block(*compute_);
  }
}

void DeviceContext::copy_waits(const std::optional<c10::Event>& event) const {
  if (copy_ && event) {
    event->block(*copy_);
  }
}

void DeviceContext::host_waits(const std::optional<c10::Event>& event) {
  if (event) {
    event->synchronize();
  }
}

void DeviceContext::synchronize() const {
  if (!is_cpu()) {
    c10::impl::VirtualGuardImpl(device_.type()).synchronizeDevice(device_.index());
  }
}

void DeviceContext::drain() const noexcept {
  try {
    synchronize();
  } catch (...) {  // NOLINT(bugprone-empty-catch): who drains has an error to report already
  }
}

}  // namespace hybridgen
