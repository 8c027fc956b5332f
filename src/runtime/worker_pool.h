// SPDX-License-Identifier: Apache-2.0
// Pinned threads that run the host side of attention beside the device. Not OpenMP: a second
// OpenMP team would fight with LibTorch's for the same cores.
//
// Guarantees: submit() returns at once and never allocates; tasks of one group run in any order, on
// any worker; groups start in submission order; of a group's exceptions wait() rethrows the one of
// the task with the lowest index, whatever the timing. Workers set flush-to-zero and
// denormals-are-zero, spin for a bounded time when idle and then sleep on a futex. The destructor
// finishes queued groups, then joins; in a forked child, where no worker is, it lets go of them.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/process.h"

namespace hybridgen {

/// One batch of independent tasks. Owned by the caller, reusable after WorkerPool::wait(), must
/// outlive its completion. Not copyable or movable (workers hold its address).
class TaskGroup {
 public:
  using Function = void (*)(void* context, std::int64_t index, int worker);

  TaskGroup() = default;
  TaskGroup(const TaskGroup&) = delete;
  TaskGroup& operator=(const TaskGroup&) = delete;

  /// Tasks are function(context, i, worker) for i in [0, count); worker in [0, WorkerPool::size()),
  /// or WorkerPool::size() for the thread that called run() or finish().
  /// Must not be called while the group is in flight. ConfigError unless 0 <= count < 2^32.
  void assign(Function function, void* context, std::int64_t count);
  std::int64_t count() const { return count_; }
  bool done() const { return remaining_.load(std::memory_order_acquire) == 0; }

 private:
  friend class WorkerPool;
  Function function_ = nullptr;
  void* context_ = nullptr;
  std::int64_t count_ = 0;
  std::uint64_t position_ = 0;  ///< among all groups of the pool
  std::atomic<std::int64_t> remaining_{0};
  static constexpr std::int64_t kNoneFailed = std::numeric_limits<std::int64_t>::max();
  std::atomic<std::int64_t> first_failed_{kNoneFailed};
  std::mutex error_mutex_;  ///< of the two members beside it, while tasks run
  std::exception_ptr error_;
};

class WorkerPool {
 public:
  /// For Options::spin and set_spin() while groups arrive once per layer of a decode step, and
  /// every worker and waiter has a core of its own: longer than the pauses between them.
  static constexpr std::chrono::microseconds kDecodeSpin{1000};

  struct Options {
    /// One pinned thread per entry; one < 0 may run on all of available_cpus().
    std::vector<int> cpus;
    std::chrono::microseconds spin{50};  ///< idle time before a worker (or a waiter) sleeps
  };

  /// Throws ConfigError if `cpus` is empty, DeviceError if a thread cannot be created or pinned.
  explicit WorkerPool(Options options);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int size() const;

  /// Replaces Options::spin, for every idle time and wait that begins after it; at any time.
  void set_spin(std::chrono::microseconds spin);

  /// Queues all tasks of `group`. Throws std::logic_error (debug) if it is in flight already.
  void submit(TaskGroup& group);

  /// Blocks until all tasks of `group` finished (at once if it was never submitted or count is 0),
  /// then rethrows the exception of its lowest index, if any. May be called from one thread at a
  /// time per group.
  void wait(TaskGroup& group);

  /// wait(), but the calling thread takes tasks of `group` too, as worker size(). One caller at a
  /// time.
  void finish(TaskGroup& group);

  /// submit() and finish(): workers that are busy with earlier groups join in when they are done
  /// with them.
  void run(TaskGroup& group);

  /// Calls function(i) for i in [0, count), in any order and on several threads at a time, as
  /// run() does; rethrows as wait() does. Allocates nothing.
  template <typename Function>
  void for_each(std::int64_t count, const Function& function) {
    TaskGroup group;
    group.assign(
        [](void* context, std::int64_t index, int /*worker*/) {
          (*static_cast<const Function*>(context))(index);
        },
        const_cast<void*>(static_cast<const void*>(&function)),
        count);
    run(group);
  }

 private:
  struct State;
  std::unique_ptr<State> state_;
  MakerProcess maker_;
};

}  // namespace hybridgen
