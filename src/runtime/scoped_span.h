// SPDX-License-Identifier: Apache-2.0
// A span of a trace that begins here and ends with the scope. Costs one relaxed load unless a trace
// is being recorded.
#pragma once

#include <cstdint>

#include "hybridgen/runtime/trace_recorder.h"

namespace hybridgen {

class ScopedSpan {
 public:
  /// `name` must be static, as a literal is.
  ScopedSpan(TraceRecorder& trace,
             const char* name,
             std::int64_t layer = -1,
             std::int64_t step = -1,
             TraceLane lane = TraceLane::kDevice)
      : trace_(trace.enabled() ? &trace : nullptr) {
    if (trace_ != nullptr) {
      span_ = {.name = name,
               .lane = lane,
               .layer = static_cast<std::int32_t>(layer),
               .step = step,
               .begin_ns = TraceRecorder::now_ns()};
    }
  }
  ~ScopedSpan() {
    if (trace_ != nullptr) {
      span_.end_ns = TraceRecorder::now_ns();
      trace_->record(span_);
    }
  }
  ScopedSpan(const ScopedSpan&) = delete;
  ScopedSpan& operator=(const ScopedSpan&) = delete;

  /// Nothing happened that is worth a span.
  void discard() { trace_ = nullptr; }

 private:
  TraceRecorder* trace_;
  TraceSpan span_;
};

}  // namespace hybridgen
