// SPDX-License-Identifier: Apache-2.0
// The clocks of a timed device: when each stream and each direction of the link is free again.
// Times are nanoseconds of the host's clock, so that real work on the host and modelled work on the
// device meet: whoever waits for the device sleeps until its modelled time. No LibTorch.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "emulated/cost_model.h"

namespace hybridgen::emulated {

/// The clock that threads live by.
class HostClock {
 public:
  virtual ~HostClock() = default;
  virtual std::int64_t now_ns();  ///< steady_clock
  /// Sleeps, so that a wait takes no core from who works; returns a few microseconds late at most
  /// where a core is free.
  virtual void sleep_until(std::int64_t time_ns);
};

/// Modelled seconds so far.
struct BusyTime {
  double device_s = 0.0;  ///< operations on the device
  double to_device_s = 0.0;
  double to_host_s = 0.0;
  double issue_s = 0.0;  ///< the host's, for issuing
};

class Timeline {
 public:
  /// `profile` must outlive it.
  explicit Timeline(const MachineProfile& profile, std::unique_ptr<HostClock> clock = {});
  /// Goes on by another clock, of a time no earlier. For tests; only while no work is queued.
  void set_clock(std::unique_ptr<HostClock> clock) { clock_ = std::move(clock); }

  /// Queues an operation and returns when it ends. The thread that queues is one driver: it issues
  /// operations one after the other, each taking the modelled or the real time, whichever is
  /// longer. A copy waits for the one before it in its direction, on whatever stream; while the
  /// other direction is busy at its start it has the duplex rate.
  std::int64_t queue(std::size_t stream, const TimedOperation& operation);
  /// When an event that is recorded now is reached.
  std::int64_t record(std::size_t stream);
  /// What is queued on `stream` from now on begins at `time_ns` at the earliest.
  void wait_on_device(std::size_t stream, std::int64_t time_ns);
  bool is_done(std::int64_t time_ns);
  /// Returns when `time_ns` has passed and the thread has been woken, if it had to sleep.
  void host_wait(std::int64_t time_ns, bool is_driver);

  BusyTime busy_time() const;
  void reset_busy_time();

 private:
  enum Direction : std::uint8_t { kDown, kUp };

  const MachineProfile& profile_;
  std::unique_ptr<HostClock> clock_;
  mutable std::mutex mutex_;
  std::map<std::size_t, std::int64_t> streams_;  ///< busy until
  std::array<std::int64_t, 2> link_{};           ///< each direction, busy until
  std::int64_t issued_ = 0;                      ///< when the driver had issued what it last queued
  BusyTime busy_;
};

}  // namespace hybridgen::emulated
