// SPDX-License-Identifier: Apache-2.0
// Pins nothing, but notes what it is asked for, and finds fault with what no device would take: a
// byte that is pinned twice, and what was never pinned so. Any call can be told to fail.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>

#include "hybridgen/core/error.h"
#include "memory/page_pins.h"

namespace hybridgen {

class NotedPins final : public PagePins {
 public:
  /// The `nth` call from now on, counted from 0, is refused.
  void fail(std::int64_t nth) {
    const std::lock_guard lock(mutex_);
    failing_ = num_calls_ + nth;
  }
  void heal() { fail(-1); }
  /// As a device that pins nothing.
  void be_off() { is_off_ = true; }

  std::int64_t num_calls() const {
    const std::lock_guard lock(mutex_);
    return num_calls_;
  }
  std::size_t num_pinned() const {
    const std::lock_guard lock(mutex_);
    return pinned_.size();
  }
  std::int64_t pinned_bytes() const {
    const std::lock_guard lock(mutex_);
    std::size_t bytes = 0;
    for (const auto& [data, size] : pinned_) bytes += size;
    return static_cast<std::int64_t>(bytes);
  }
  bool is_pinned(const void* address) const {
    const std::lock_guard lock(mutex_);
    const auto* const at = static_cast<const std::byte*>(address);
    const auto after = pinned_.upper_bound(at);
    return after != pinned_.begin() && at < std::prev(after)->first + std::prev(after)->second;
  }

  bool pin(PageSpan span) override {
    const std::lock_guard lock(mutex_);
    if (is_off_) return false;
    if (num_calls_++ == failing_) {
      throw OutOfMemoryError(
          "[pin host memory] pinning some of the dram tier failed: a test said so");
    }
    const auto after = pinned_.lower_bound(span.data + span.bytes);
    const bool is_free =
        after == pinned_.begin() || std::prev(after)->first + std::prev(after)->second <= span.data;
    EXPECT_TRUE(is_free) << "pinned twice";
    EXPECT_GT(span.bytes, 0U);
    pinned_[span.data] = span.bytes;
    return true;
  }
  void unpin(PageSpan span) noexcept override {
    const std::lock_guard lock(mutex_);
    const auto found = pinned_.find(span.data);
    const bool is_known = found != pinned_.end() && found->second == span.bytes;
    EXPECT_TRUE(is_known) << "never pinned so";
    if (is_known) pinned_.erase(found);
  }

 private:
  mutable std::mutex mutex_;
  std::map<const std::byte*, std::size_t> pinned_;
  std::int64_t num_calls_ = 0;
  std::int64_t failing_ = -1;
  bool is_off_ = false;
};

}  // namespace hybridgen
