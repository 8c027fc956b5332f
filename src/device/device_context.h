// SPDX-License-Identifier: Apache-2.0
// The device of an engine: where its work is queued and how one lane waits for another. Written
// with LibTorch's device-generic streams, so the same code serves CUDA and the CPU, where the
// calling thread is the device, work runs in order at once and waiting costs nothing.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>

#include <memory>
#include <optional>
#include <string>

#include "memory/page_pins.h"

namespace hybridgen {

/// Host memory that copies to and from a device that is not the CPU are fastest with.
at::Tensor pinned_for(at::Device device, at::IntArrayRef shape, at::ScalarType type);

class DeviceContext {
 public:
  /// "cpu", "cuda", "cuda:N", "emulated" (a device of its own memory and streams on this machine's
  /// CPU) or "emulated:N" (the same with the clock of registered machine N: register_machine()).
  /// Throws DeviceError naming what there is if the device is not usable, ConfigError for other
  /// names.
  explicit DeviceContext(const std::string& name);

  at::Device device() const { return device_; }
  bool is_cpu() const { return device_.is_cpu(); }
  /// Whether operations only take their modelled time: what they would compute is meaningless.
  bool is_timed() const { return device_.is_privateuseone() && device_.index() > 0; }
  std::string name() const { return device_.str(); }

  /// Makes the device and its compute stream current for the calling thread from here on. What the
  /// thread then queues, allocates and frees is in that stream's order.
  void enter_compute() const;

  /// Makes the compute (copy) stream current for the calling thread while the guard lives; null on
  /// a CPU device.
  std::unique_ptr<c10::StreamGuard> use_compute() const;
  std::unique_ptr<c10::StreamGuard> use_copy() const;

  /// Host memory for transfers: pinned where the device is not the CPU.
  at::Tensor host_staging(at::IntArrayRef shape, at::ScalarType type) const;

  /// What pins other host memory for it; null where it needs none. Valid as long as this.
  PagePins* pins() const { return pins_.get(); }

  /// Marks the work queued so far on the compute (copy) lane.
  void record_compute(std::optional<c10::Event>& event) const;
  void record_copy(std::optional<c10::Event>& event) const;
  /// The compute (copy) lane waits on the device for `event`; the host does not.
  void compute_waits(const std::optional<c10::Event>& event) const;
  void copy_waits(const std::optional<c10::Event>& event) const;
  /// The calling thread waits for `event`.
  static void host_waits(const std::optional<c10::Event>& event);
  /// The calling thread waits for all that any thread has queued on any stream of the device.
  void synchronize() const;
  /// The same after a failure, of which this may be one: it throws nothing.
  void drain() const noexcept;

 private:
  at::Device device_ = at::kCPU;
  std::shared_ptr<PagePins> pins_;
  std::optional<c10::Stream> compute_;
  std::optional<c10::Stream> copy_;
};

}  // namespace hybridgen
