// SPDX-License-Identifier: Apache-2.0
// A timed device's clock for tests whose verdict must not depend on how fast the host is.
#pragma once

#include <atomic>
#include <cstdint>

#include "emulated/timeline.h"

namespace hybridgen::testing {

/// Time passes only where somebody sleeps or the test says so.
class StillClock : public emulated::HostClock {
 public:
  explicit StillClock(std::atomic<std::int64_t>& now) : now_(now) {}
  std::int64_t now_ns() override { return now_; }
  void sleep_until(std::int64_t time_ns) override {
    std::int64_t now = now_;
    while (now < time_ns && !now_.compare_exchange_weak(now, time_ns)) {
    }
  }

 private:
  std::atomic<std::int64_t>& now_;
};

}  // namespace hybridgen::testing
