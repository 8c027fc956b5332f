// SPDX-License-Identifier: Apache-2.0
#include "pipeline/device_gate.h"

#include "runtime/engine_thread.h"

namespace hybridgen {

DeviceGate::DeviceGate(WorkerPool& pool) : pool_(pool) {
  thread_ = start_engine_thread("[device gate] the thread", [this] { loop(); });
}

DeviceGate::~DeviceGate() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  queued_.notify_one();
  thread_.join();
}

std::int64_t DeviceGate::submit(TaskGroup& group,
                                const std::function<void()>& wait,
                                std::exception_ptr& error) {
  std::int64_t ticket = 0;
  {
    const std::lock_guard lock(mutex_);
    entries_.push_back({&group, &wait, &error});
    ticket = ++num_submitted_;
  }
  queued_.notify_one();
  return ticket;
}

void DeviceGate::pass(std::int64_t ticket) {
  std::unique_lock lock(mutex_);
  passed_.wait(lock, [&] { return num_passed_ >= ticket; });
}

void DeviceGate::loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    queued_.wait(lock, [this] { return stopping_ || !entries_.empty(); });
    if (entries_.empty()) {
      return;
    }
    const Entry entry = entries_.front();
    entries_.pop_front();
    lock.unlock();
    *entry.error = nullptr;
    try {
      (*entry.wait)();
    } catch (...) {
      *entry.error = std::current_exception();
    }
    pool_.submit(*entry.group);
    lock.lock();
    ++num_passed_;
    passed_.notify_all();
  }
}

}  // namespace hybridgen
