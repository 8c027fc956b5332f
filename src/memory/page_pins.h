// SPDX-License-Identifier: Apache-2.0
// Pages of host memory that stay where they are, so that a device that is not the host can read
// them by itself. Who implements it knows the device; who asks for it does not.
#pragma once

#include <optional>

#include "memory/page_calls.h"

namespace hybridgen {

class PagePins {
 public:
  PagePins() = default;
  PagePins(const PagePins&) = delete;
  PagePins& operator=(const PagePins&) = delete;
  virtual ~PagePins() = default;

  /// Pins the pages of `span`, which come with it where there are none yet, until unpin() of the
  /// same span. No byte is pinned twice. False: the device pins nothing, and has pinned nothing
  /// yet. Throws OutOfMemoryError if it pins, but not this.
  virtual bool pin(PageSpan span) = 0;
  virtual void unpin(PageSpan span) noexcept = 0;
};

/// `of_device` (null: that of a device that is the host), or what a PagePinsForTest has put in its
/// place.
PagePins* page_pins(PagePins* of_device);

/// Stands in for every device's as long as it lives: for memory that is reserved from now on.
class PagePinsForTest {
 public:
  /// Null: nothing is pinned.
  explicit PagePinsForTest(PagePins* pins);
  ~PagePinsForTest();
  PagePinsForTest(const PagePinsForTest&) = delete;
  PagePinsForTest& operator=(const PagePinsForTest&) = delete;

 private:
  std::optional<PagePins*> before_;
};

}  // namespace hybridgen
