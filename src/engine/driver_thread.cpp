// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/engine/driver_thread.h"

#include <ATen/Parallel.h>
#include <omp.h>

#include <utility>

namespace hybridgen {

DriverThread::DriverThread() : thread_([this] { loop(); }) {}

DriverThread::~DriverThread() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void DriverThread::run(const std::function<void()>& work) {
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

}  // namespace hybridgen
