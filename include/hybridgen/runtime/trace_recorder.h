// SPDX-License-Identifier: Apache-2.0
// Spans of the device stage, the CPU stage and the link, for statistics that can be looked at.
// Thread-safe and lock-free while recording; when not enabled, record() is one relaxed load.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace hybridgen {

/// kDisk: reads and writes of the disk tier; kMoves: pages that change their tier.
enum class TraceLane : std::uint8_t { kDevice, kCpu, kLink, kScheduler, kDisk, kMoves };

struct TraceSpan {
  const char* name = "";  ///< static string
  TraceLane lane = TraceLane::kDevice;
  std::int32_t worker = 0;  ///< a thread of the CPU's or the disk's lane, a request of the others
  std::int32_t layer = -1;  ///< -1: not tied to a layer
  std::int64_t step = -1;
  std::int64_t begin_ns = 0;  ///< steady clock
  std::int64_t end_ns = 0;
  std::int64_t bytes = 0;  ///< moved or read; K on the scheduler's lane
  double value = 0.0;      ///< of "lost mass" there
};

class TraceRecorder {
 public:
  using Clock = std::chrono::steady_clock;
  static std::int64_t now_ns();

  /// Starts recording up to `capacity` spans (allocated here, so that recording never allocates);
  /// later spans are counted as dropped.
  void start(std::size_t capacity);
  /// Returns when no thread is inside record() any more.
  void stop();
  bool enabled() const { return enabled_.load(std::memory_order_relaxed); }

  void record(const TraceSpan& span);

  /// Spans so far, ordered by begin_ns. Call after stop().
  std::vector<TraceSpan> spans() const;
  std::int64_t dropped() const;

 private:
  std::atomic<bool> enabled_{false};
  std::atomic<int> writers_{0};  ///< threads inside record()
  std::atomic<std::size_t> next_{0};
  std::vector<TraceSpan> buffer_;
};

}  // namespace hybridgen
