// SPDX-License-Identifier: Apache-2.0
#include "device/driver_thread.h"

#include <ATen/Parallel.h>
#include <c10/util/ParallelGuard.h>
#include <omp.h>

#include <utility>

#include "hybridgen/core/error.h"
#include "runtime/engine_thread.h"

namespace hybridgen {

DriverThread::DriverThread() {
  thread_ = start_engine_thread("[driver thread] the thread", [this] { loop(); });
}

DriverThread::~DriverThread() {
  if (!maker_.is_this_one()) {
    static_cast<void>(new std::thread(std::move(thread_)));  // neither joined nor destroyed
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void DriverThread::run(const std::function<void()>& work) {
  if (!maker_.is_this_one()) {
    throw DeviceError(
        "[engine] this process was forked from the one that made the engine, whose threads are "
        "not here; make the engine in this process, or start it with spawn instead of fork");
  }
  std::unique_lock lock(mutex_);
  work_ = &work;
  changed_.notify_all();
  changed_.wait(lock, [this] { return work_ == nullptr; });
  if (error_) {
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

void DriverThread::loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || work_ != nullptr; });
    if (stopping_) {
      return;
    }
    lock.unlock();
    std::exception_ptr error;
    try {
      (*work_)();
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    error_ = error;
    work_ = nullptr;
    changed_.notify_all();
  }
}

int default_intra_op_threads() { return omp_get_max_threads(); }

void set_intra_op_threads(int threads) {
  // LibTorch sizes a thread's team on first use; after that the thread's own OpenMP setting rules.
  // at::set_num_threads would change the default of every thread of the process.
  at::init_num_threads();
  omp_set_num_threads(threads);
}

void start_intra_op_threads(int threads) {
  check_threads_can_start(threads - 1, "OpenMP");
  set_intra_op_threads(threads);
#pragma omp parallel
  {
    touch_thread_local_data();
    // LibTorch has blocks of its own, in two libraries.
    static_cast<void>(at::get_thread_num());
    static_cast<void>(c10::ParallelGuard::is_enabled());
  }
}

}  // namespace hybridgen
