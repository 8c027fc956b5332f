// SPDX-License-Identifier: Apache-2.0
// What of an owner's memory is pinned. A device unpins only what it was asked to pin, so that is
// remembered; what lies side by side is pinned by one call.
#pragma once

#include <cstddef>
#include <map>
#include <span>

#include "memory/page_pins.h"

namespace hybridgen {

/// Movable. Used by one thread. Ends before its memory does.
class PinnedSpans {
 public:
  PinnedSpans() = default;
  /// Null: pins nothing. Else `pins` must outlive it.
  explicit PinnedSpans(PagePins* pins) : pins_(pins) {}
  ~PinnedSpans();
  PinnedSpans(PinnedSpans&& other) noexcept;
  PinnedSpans& operator=(PinnedSpans&& other) noexcept;

  /// Whether there is a device that may pin.
  bool is_wanted() const { return pins_ != nullptr; }
  /// All of them, which ascend, or none, if it throws what PagePins::pin does or the device pins
  /// nothing.
  void pin(std::span<const PageSpan> spans);
  /// Whatever was pinned by one call with any part of them.
  void unpin(std::span<const PageSpan> spans) noexcept;
  bool is_empty() const { return pinned_.empty(); }
  bool has_any(std::span<const PageSpan> spans) const;
  /// Whether every byte is pinned, be it by several calls.
  bool has_all(std::span<const PageSpan> spans) const;

 private:
  using Pinned = std::map<std::byte*, std::size_t>;
  Pinned::const_iterator find(PageSpan span) const;

  PagePins* pins_ = nullptr;
  Pinned pinned_;  ///< bytes, by address
};

}  // namespace hybridgen
