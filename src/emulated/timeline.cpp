// SPDX-License-Identifier: Apache-2.0
#include "emulated/timeline.h"

#include <sys/prctl.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <ctime>
#include <utility>

namespace hybridgen::emulated {
namespace {

constexpr double kNanosPerSecond = 1e9;
// What a sleeping thread usually comes late by; the rest is waited for awake.
constexpr std::int64_t kWakeNs = 20'000;

std::int64_t nanoseconds(double seconds) { return std::llround(seconds * kNanosPerSecond); }

// The system may else add 50 us to a sleep.
void sleep_exactly() {
  thread_local const bool once = (prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0), true);
  static_cast<void>(once);
}

}  // namespace

std::int64_t HostClock::now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void HostClock::sleep_until(std::int64_t time_ns) {
  const std::int64_t wake_ns = time_ns - kWakeNs;
  if (now_ns() < wake_ns) {
    sleep_exactly();
    const timespec until{wake_ns / 1'000'000'000, wake_ns % 1'000'000'000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) == EINTR) {
    }
  }
  while (now_ns() < time_ns) {
  }
}

Timeline::Timeline(const MachineProfile& profile, std::unique_ptr<HostClock> clock)
    : profile_(profile), clock_(clock ? std::move(clock) : std::make_unique<HostClock>()) {}

std::int64_t Timeline::queue(std::size_t stream, const TimedOperation& operation) {
  const std::lock_guard lock(mutex_);
  TimedOperation timed = operation;
  const bool is_down = crosses_down(timed.kind);
  const bool is_up = timed.kind == OperationKind::kDeviceToHost;
  std::int64_t& free = streams_[stream];
  std::int64_t start = free;
  if (is_down || is_up) {
    start = std::max(start, link_[is_down ? kDown : kUp]);
    start = std::max({start, issued_, clock_->now_ns()});
    timed.both_directions = link_[is_down ? kUp : kDown] > start;
  }
  const OperationTime time = operation_time(profile_, timed);
  issued_ = std::max(clock_->now_ns(), issued_ + nanoseconds(time.issue_s));
  const std::int64_t end = std::max(start, issued_) + nanoseconds(time.busy_s);
  free = end;
  busy_.issue_s += time.issue_s;
  if (is_down || is_up) {
    link_[is_down ? kDown : kUp] = end;
    (is_down ? busy_.to_device_s : busy_.to_host_s) += time.busy_s;
  } else {
    busy_.device_s += time.busy_s;
  }
  return end;
}

std::int64_t Timeline::record(std::size_t stream) {
  const std::lock_guard lock(mutex_);
  return std::max({streams_[stream], issued_, clock_->now_ns()});
}

void Timeline::wait_on_device(std::size_t stream, std::int64_t time_ns) {
  const std::lock_guard lock(mutex_);
  std::int64_t& free = streams_[stream];
  free = std::max(free, time_ns);
}

bool Timeline::is_done(std::int64_t time_ns) {
  const std::lock_guard lock(mutex_);
  return clock_->now_ns() >= time_ns;
}

void Timeline::host_wait(std::int64_t time_ns, bool is_driver) {
  std::int64_t until = time_ns;
  {
    const std::lock_guard lock(mutex_);
    if (is_driver) until = std::max(until, issued_);
  }
  if (clock_->now_ns() >= until) return;
  clock_->sleep_until(until + nanoseconds(wake_seconds(profile_)));
}

BusyTime Timeline::busy_time() const {
  const std::lock_guard lock(mutex_);
  return busy_;
}

void Timeline::reset_busy_time() {
  const std::lock_guard lock(mutex_);
  busy_ = {};
}

}  // namespace hybridgen::emulated
