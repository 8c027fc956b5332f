// SPDX-License-Identifier: Apache-2.0
// What LibTorch's CPU allocator hands out on the calling thread, at most at a time.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstdint>
#include <memory>

namespace hybridgen::testing {

/// Counts while it lives. What was there before does not count.
class PeakBytes {
 public:
  std::int64_t peak() const { return reports_->peak; }

 private:
  struct Reports final : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void* /*memory*/,
                           std::int64_t bytes,
                           std::size_t /*allocated*/,
                           std::size_t /*reserved*/,
                           c10::Device /*device*/) override {
      now += bytes;
      peak = std::max(peak, now);
    }
    bool memoryProfilingEnabled() const override { return true; }
    std::int64_t now = 0;
    std::int64_t peak = 0;
  };
  std::shared_ptr<Reports> reports_ = std::make_shared<Reports>();
  c10::DebugInfoGuard guard_{c10::DebugInfoKind::PROFILER_STATE, reports_};
};

}  // namespace hybridgen::testing
