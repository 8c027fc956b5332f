// SPDX-License-Identifier: Apache-2.0
// Hands groups of tasks to the worker pool once the device has come to them, in order: one thread
// waits for the device, so that no worker does and all of them take what is ready.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "runtime/worker_pool.h"

namespace hybridgen {

class DeviceGate {
 public:
  /// Starts the thread: DeviceError if the system refuses. `pool` must outlive this.
  explicit DeviceGate(WorkerPool& pool);
  /// Lets through what is queued, then joins.
  ~DeviceGate();
  DeviceGate(const DeviceGate&) = delete;
  DeviceGate& operator=(const DeviceGate&) = delete;

  /// Calls wait(), leaves in `error` what that throws (else null), and submits `group`. Returns at
  /// once; everything must outlive pass() of the ticket that comes back.
  std::int64_t submit(TaskGroup& group,
                      const std::function<void()>& wait,
                      std::exception_ptr& error);
  /// Blocks until the group of that ticket is in the pool.
  void pass(std::int64_t ticket);

 private:
  struct Entry {
    TaskGroup* group;
    const std::function<void()>* wait;
    std::exception_ptr* error;
  };
  void loop();

  WorkerPool& pool_;
  std::mutex mutex_;
  std::condition_variable queued_;
  std::condition_variable passed_;
  std::deque<Entry> entries_;
  std::int64_t num_submitted_ = 0;
  std::int64_t num_passed_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace hybridgen
