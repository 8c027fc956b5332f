// SPDX-License-Identifier: Apache-2.0
#include "pipeline/stage_timer.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "hybridgen/runtime/trace_recorder.h"

namespace hybridgen {

void StageTimer::record(Lane& lane, Mark mark) {
  if (lane.used == lane.events.size()) {
    lane.events.push_back(
        {mark, paired_, c10::Event(device_.device().type(), c10::EventFlag::BACKEND_DEFAULT)});
  }
  lane.events[lane.used].mark = mark;
  lane.events[lane.used].paired = paired_;
  const c10::impl::VirtualGuardImpl guard(device_.device().type());
  lane.events[lane.used].event.record(guard.getStream(device_.device()));
  ++lane.used;
}

template <typename Function>
void StageTimer::drain(Lane& lane, const Function& elapsed) {
  for (std::size_t i = 1; i < lane.used; ++i) {
    elapsed(lane.events[i].mark,
            lane.events[i].paired,
            lane.events[i - 1].event.elapsedTime(lane.events[i].event) * 1e-3);
  }
  lane.used = 0;
}

void StageTimer::mark(Mark mark) {
  if (!device_.is_cpu()) {
    record(stage_, mark);
    return;
  }
  const std::int64_t now = TraceRecorder::now_ns();
  add(mark, paired_, static_cast<double>(now - last_ns_) * 1e-9);
  last_ns_ = now;
}

void StageTimer::add(Mark mark, bool paired, double elapsed_s) {
  if (mark == kBeforeWait || mark == kEnd) {
    times_.device_s += elapsed_s;
    times_.paired_s += paired ? elapsed_s : 0.0;
  } else if (mark == kAfterWait) {
    times_.wait_s += elapsed_s;
  }
}

void StageTimer::begin(bool paired) {
  paired_ = paired;
  mark(kBegin);
}

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
  drain(stage_, [this](Mark mark, bool paired, double elapsed_s) { add(mark, paired, elapsed_s); });
  drain(link_, [this](Mark mark, bool /*paired*/, double elapsed_s) {
    if (mark == kEnd) {
      times_.link_s += elapsed_s;
    }
  });
  const StageTimes times = times_;
  times_ = {};
  return times;
}

void StageTimer::reset() {
  stage_.used = 0;
  link_.used = 0;
  times_ = {};
}

}  // namespace hybridgen
