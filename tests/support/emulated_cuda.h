// SPDX-License-Identifier: Apache-2.0
// A CUDA device for tests on machines without one: beside a CPU build of torch the emulated device
// is registered as CUDA, so that DecoderModel(..., "cuda") and everything above it runs on it:
//
//   EmulatedCuda device(emulated::Mode::kLazy);      // what follows runs on it, in this mode
//   Engine engine(tiny_model(device.name()), options("hybridgen"));
//   device.reset_counters();
//   generate(engine, ragged_prompts(), 1);
//   EXPECT_LE(device.counters().host_waits(), 1);    // of the driver; workers' are worker_waits
//
// Beside a CUDA build of torch, which has the CUDA key itself, name() is "emulated". Make it before
// models and engines, so that they are gone before it.
#pragma once

#include <string>

#include "emulated/device.h"

namespace hybridgen::testing {

class EmulatedCuda {
 public:
  explicit EmulatedCuda(emulated::Mode mode = emulated::Mode::kEager);
  /// New and freed memory is NaN, 8 GiB are there, uploads of ordinary memory wait, unless said
  /// otherwise (emulated/device.h).
  explicit EmulatedCuda(const emulated::DeviceOptions& options);
  /// Waits for all work; an operation's error that nobody has seen fails the test.
  ~EmulatedCuda();
  EmulatedCuda(const EmulatedCuda&) = delete;
  EmulatedCuda& operator=(const EmulatedCuda&) = delete;

  const std::string& name() const { return name_; }  ///< for DecoderModel and tiny_model
  emulated::Device& device() { return device_; }
  emulated::Counters counters() const { return device_.counters(); }
  void reset_counters() { device_.reset_counters(); }

  static emulated::DeviceOptions options(emulated::Mode mode);

 private:
  std::string name_;
  emulated::Device& device_;
};

}  // namespace hybridgen::testing
