// SPDX-License-Identifier: Apache-2.0
#include "device/device_pins.h"

#include <c10/util/Exception.h>

#include <atomic>

#include "emulated/backend.h"
#include "hybridgen/core/error.h"
#include "kernels/cuda_host_pins.h"
#include "kernels/cuda_kernels.h"

namespace hybridgen {
namespace {

/// Engines of a model share them, each with a thread of its own.
class DevicePins : public PagePins {
 public:
  bool pin(PageSpan span) final {
    if (state_ == State::kOff) return false;
    const char* const refusal = ask(span);
    if (refusal == nullptr) {
      state_ = State::kOn;
      return true;
    }
    if (state_ == State::kOn) throw refused(span, refusal);
    state_ = State::kOff;
    TORCH_WARN("the device pins no host memory of ours (",
               refusal,
               "): what it reads of offloaded tokens goes through staging");
    return false;
  }

 private:
  enum class State : std::uint8_t { kUnknown, kOn, kOff };

  /// Null: done; else why not.
  virtual const char* ask(PageSpan span) = 0;

  static OutOfMemoryError refused(PageSpan span, const char* why) {
    return OutOfMemoryError(message("[pin host memory] pinning ",
                                    human_bytes(static_cast<double>(span.bytes)),
                                    " of the dram or cxl tier for the device failed: ",
                                    why,
                                    "; allowed: what the device's driver can pin; lower "
                                    "KVConfig(dram=...) or run fewer or shorter requests at a "
                                    "time"));
  }

  std::atomic<State> state_{State::kUnknown};
};

class EmulatedPins final : public DevicePins {
 public:
  void unpin(PageSpan span) noexcept override { emulated::unpin(span.data); }

 private:
  const char* ask(PageSpan span) override {
    return emulated::pin(span.data, span.bytes) ? nullptr : "part of it is pinned already";
  }
};

class CudaPins final : public DevicePins {
 public:
  void unpin(PageSpan span) noexcept override { kernels::unpin_host_cuda(span.data); }

 private:
  const char* ask(PageSpan span) override { return kernels::pin_host_cuda(span.data, span.bytes); }
};

}  // namespace

std::unique_ptr<PagePins> device_pins(c10::Device device) {
  if (emulated::is_registered(device.type())) return std::make_unique<EmulatedPins>();
  if (device.is_cuda() && kernels::has_cuda_kernels()) return std::make_unique<CudaPins>();
  return nullptr;
}

}  // namespace hybridgen
