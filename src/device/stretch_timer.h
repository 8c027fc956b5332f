// SPDX-License-Identifier: Apache-2.0
// How long a device's streams spent in marked stretches, found without waiting for any of them.
#pragma once

#include <c10/core/Event.h>

#include <deque>
#include <optional>
#include <vector>

#include "device/device_context.h"

namespace hybridgen {

/// Of one thread. On a CPU device, where what is queued has been done, nothing is timed.
class StretchTimer {
 public:
  explicit StretchTimer(const DeviceContext& device) : device_(device) {}

  /// A stretch of the calling thread's current stream begins, and ends if one began. They do not
  /// nest.
  void begin();
  void end();

  /// Sum, in seconds, of all stretches since reset() whose end the device has reached.
  double seconds();
  /// Those that the device has yet to reach are not counted later.
  void reset();

 private:
  struct Stretch {
    c10::Event begin, end;
  };
  void collect();
  c10::Stream current_stream() const;

  const DeviceContext& device_;
  std::optional<Stretch> open_;
  std::deque<Stretch> under_way_;  ///< the oldest first
  std::vector<Stretch> idle_;      ///< whose events are used again
  double seconds_ = 0.0;
};

}  // namespace hybridgen
