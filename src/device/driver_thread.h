// SPDX-License-Identifier: Apache-2.0
// The thread that drives the device. On a CPU device it *is* the device: its LibTorch (OpenMP) team
// belongs to it alone, so that neither its size nor its affinity leaks into the caller's program.
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "runtime/process.h"

namespace hybridgen {

class DriverThread {
 public:
  /// Throws DeviceError if the thread cannot be created.
  DriverThread();
  /// In a forked child, where the thread is not, it lets go of it.
  ~DriverThread();
  DriverThread(const DriverThread&) = delete;
  DriverThread& operator=(const DriverThread&) = delete;

  /// Runs `work` on the thread, waits for it and rethrows its exception. One caller at a time.
  /// Throws DeviceError in a forked child.
  void run(const std::function<void()>& work);

 private:
  void loop();

  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void()>* work_ = nullptr;
  std::exception_ptr error_;
  bool stopping_ = false;
  MakerProcess maker_;
  std::thread thread_;
};

/// OpenMP threads the calling thread would use by itself: OMP_NUM_THREADS, else the cores.
int default_intra_op_threads();

/// OpenMP (and so LibTorch's intra-op) threads of work started from the calling thread, and only
/// there.
void set_intra_op_threads(int threads);

/// The same, and starts the threads now. Throws DeviceError if the system does not allow so many.
void start_intra_op_threads(int threads);

}  // namespace hybridgen
