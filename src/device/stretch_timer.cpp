// SPDX-License-Identifier: Apache-2.0
#include "device/stretch_timer.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace hybridgen {

c10::Stream StretchTimer::current_stream() const {
  return c10::impl::VirtualGuardImpl(device_.device().type()).getStream(device_.device());
}

void StretchTimer::begin() {
  if (device_.is_cpu()) return;
  collect();
  if (!open_ && !idle_.empty()) {
    open_ = std::move(idle_.back());
    idle_.pop_back();
  }
  if (!open_) {
    const auto timed = [this] {
      return c10::Event(device_.device().type(), c10::EventFlag::BACKEND_DEFAULT);
    };
    open_ = Stretch{timed(), timed()};
  }
  open_->begin.record(current_stream());
}

void StretchTimer::end() {
  if (!open_) return;
  open_->end.record(current_stream());
  under_way_.push_back(std::move(*open_));
  open_.reset();
}

void StretchTimer::collect() {
  while (!under_way_.empty() && under_way_.front().end.query()) {
    Stretch& reached = under_way_.front();
    seconds_ += reached.begin.elapsedTime(reached.end) * 1e-3;
    idle_.push_back(std::move(reached));
    under_way_.pop_front();
  }
}

double StretchTimer::seconds() {
  collect();
  return seconds_;
}

void StretchTimer::reset() {
  std::ranges::move(under_way_, std::back_inserter(idle_));
  under_way_.clear();
  seconds_ = 0.0;
}

}  // namespace hybridgen
