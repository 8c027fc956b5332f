// SPDX-License-Identifier: Apache-2.0
// Time of the device stage with and without its wait for the host (feedback needs T_gpu without
// it). On a CPU device the clock is read; on a GPU events are recorded and read after
// the step, so that nothing is synchronised inside it.
#pragma once

#include <c10/core/Event.h>

#include <cstdint>
#include <vector>

#include "device/device_context.h"

namespace hybridgen {

struct StageTimes {
  double device_s = 0.0;  ///< device stage without waiting
  double paired_s = 0.0;  ///< the part of device_s beside which the host worked on the next layer
  double wait_s = 0.0;    ///< device stage waiting for the host's payload
  double link_s = 0.0;    ///< copies of payloads to the device; 0 on a CPU device
};

class StageTimer {
 public:
  explicit StageTimer(const DeviceContext& device) : device_(device) {}

  /// A stretch of device work starts; `paired`: beside host jobs of the next layer.
  void begin(bool paired = false);
  void before_wait();  ///< the device is about to wait for a payload
  void after_wait();   ///< the payload is there
  void end();          ///< the stretch ends

  void begin_link();  ///< copies are about to be queued on the current (copy) stream
  void end_link();

  /// Sums since the last call. On a GPU call it when the step's work is finished.
  StageTimes take();
  /// Forgets what was marked since then: a step was broken off.
  void reset();

 private:
  enum Mark : std::uint8_t { kBegin, kBeforeWait, kAfterWait, kEnd };
  /// Events of one lane, reused step after step.
  struct Lane {
    struct Entry {
      Mark mark;
      bool paired;
      c10::Event event;
    };
    std::vector<Entry> events;
    std::size_t used = 0;
  };
  void mark(Mark mark);
  void add(Mark mark, bool paired, double elapsed_s);
  void record(Lane& lane, Mark mark);
  template <typename Function>
  static void drain(Lane& lane, const Function& elapsed);

  const DeviceContext& device_;
  StageTimes times_;
  std::int64_t last_ns_ = 0;
  bool paired_ = false;
  Lane stage_;
  Lane link_;
};

}  // namespace hybridgen
