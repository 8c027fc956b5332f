// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/runtime/trace_recorder.h"

#include <algorithm>
#include <thread>

namespace hybridgen {

std::int64_t TraceRecorder::now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch())
      .count();
}

void TraceRecorder::start(std::size_t capacity) {
  stop();
  buffer_.assign(capacity, TraceSpan{});
  next_.store(0, std::memory_order_relaxed);
  enabled_.store(true, std::memory_order_seq_cst);
}

void TraceRecorder::stop() {
  enabled_.store(false, std::memory_order_seq_cst);
  while (writers_.load(std::memory_order_seq_cst) != 0) std::this_thread::yield();
}

void TraceRecorder::record(const TraceSpan& span) {
  if (!enabled()) return;
  // Announce first, look again afterwards: in the single order of these four operations either
  // stop() sees this writer and waits for it, or this writer sees that recording has stopped.
  writers_.fetch_add(1, std::memory_order_seq_cst);
  if (enabled_.load(std::memory_order_seq_cst)) {
    const std::size_t index = next_.fetch_add(1, std::memory_order_relaxed);
    if (index < buffer_.size()) buffer_[index] = span;
  }
  writers_.fetch_sub(1, std::memory_order_release);
}

std::vector<TraceSpan> TraceRecorder::spans() const {
  const std::size_t count = std::min(next_.load(std::memory_order_relaxed), buffer_.size());
  std::vector<TraceSpan> ordered(buffer_.begin(),
                                 buffer_.begin() + static_cast<std::ptrdiff_t>(count));
  std::stable_sort(ordered.begin(), ordered.end(), [](const TraceSpan& a, const TraceSpan& b) {
    return a.begin_ns < b.begin_ns;
  });
  return ordered;
}

std::int64_t TraceRecorder::dropped() const {
  const std::size_t asked = next_.load(std::memory_order_relaxed);
  return asked > buffer_.size() ? static_cast<std::int64_t>(asked - buffer_.size()) : 0;
}

}  // namespace hybridgen
