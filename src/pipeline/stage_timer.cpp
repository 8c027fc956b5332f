// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/pipeline/stage_timer.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "hybridgen/device/trace_recorder.h"

namespace hybridgen {

void StageTimer::record(Lane& lane, Mark mark) {
  if (lane.used == lane.events.size()) {
    lane.events.emplace_back(mark,
                             c10::Event(device_.device().type(), c10::EventFlag::BACKEND_DEFAULT));
  }
  lane.events[lane.used].first = mark;
  const c10::impl::VirtualGuardImpl guard(device_.device().type());
  lane.events[lane.used].second.record(guard.getStream(device_.device()));
  ++lane.used;
}

template <typename Function>
void StageTimer::drain(Lane& lane, const Function& elapsed) {
  for (std::size_t i = 1; i < lane.used; ++i) {
    elapsed(lane.events[i].first,
            lane.events[i - 1].second.elapsedTime(lane.events[i].second) * 1e-3);
  }
  lane.used = 0;
}

void StageTimer::mark(Mark mark) {
  if (!device_.is_cpu()) {
    record(stage_, mark);
    return;
  }
  const std::int64_t now = TraceRecorder::now_ns();
  const double elapsed_s = static_cast<double>(now - last_ns_) * 1e-9;
  if (mark == kBeforeWait || mark == kEnd) {
    times_.device_s += elapsed_s;
  } else if (mark == kAfterWait) {
    times_.wait_s += elapsed_s;
  }
  last_ns_ = now;
}

void StageTimer::begin() { mark(kBegin); }
void StageTimer::before_wait() { mark(kBeforeWait); }
void StageTimer::after_wait() { mark(kAfterWait); }
void StageTimer::end() { mark(kEnd); }

void StageTimer::begin_link() {
  if (!device_.is_cpu()) {
    record(link_, kBegin);
  }
}

void StageTimer::end_link() {
  if (!device_.is_cpu()) {
    record(link_, kEnd);
  }
}

StageTimes StageTimer::take() {
  drain(stage_, [this](Mark mark, double elapsed_s) {
    if (mark == kBeforeWait || mark == kEnd) {
      times_.device_s += elapsed_s;
    } else if (mark == kAfterWait) {
      times_.wait_s += elapsed_s;
    }
  });
  drain(link_, [this](Mark mark, double elapsed_s) {
    if (mark == kEnd) {
      times_.link_s += elapsed_s;
    }
  });
  const StageTimes times = times_;
  times_ = {};
  return times;
}

}  // namespace hybridgen
