// SPDX-License-Identifier: Apache-2.0
//
// How work is handed out. Groups lie in a ring; a slot holds the group's pointer and one 64-bit
// word {generation : 32, unclaimed : 32}. A worker claims a task by a compare-exchange of the word
// that lowers `unclaimed` by one, and touches the group only after that succeeded.
//
// Why a worker can never touch a group that its owner has destroyed. wait() returns only when every
// task of the group has been counted as finished, and
//  - before a claim, a worker reads nothing but pool-owned memory (ring, head, tail). A worker that
//    read an old pointer fails its compare-exchange: the generation tells each use of a slot from
//    the next, and a slot is used again only after its `unclaimed` reached 0;
//  - after a claim and until it counts its task, the group has an unfinished task, so wait()
//  blocks;
//  - counting (`remaining_.fetch_sub`) is the worker's last access to the group. Waking the waiter
//    goes through `completed`, which belongs to the pool.
// The pointer is read before the compare-exchange and the slot is overwritten only by a submitter
// that has seen `unclaimed == 0`, which happens after every successful claim: a successful claim
// therefore proves that the pointer read before it was the one that belongs to the word.
#include "runtime/worker_pool.h"

#include <pthread.h>

#include <array>
#include <cstddef>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "hybridgen/core/error.h"
#include "runtime/cpus.h"
#include "runtime/engine_thread.h"

namespace hybridgen {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kRingSize = 1024;
constexpr std::size_t kCacheLine = 64;

constexpr std::uint64_t make_word(std::uint64_t generation, std::uint64_t unclaimed) {
  return (generation << 32) | unclaimed;
}
constexpr std::uint64_t unclaimed_of(std::uint64_t word) { return word & 0xffff'ffffULL; }
constexpr std::uint64_t generation_of_word(std::uint64_t word) { return word >> 32; }
/// Never 0, which is the generation of a slot not used yet.
constexpr std::uint64_t generation_of_position(std::uint64_t position) {
  return (position / kRingSize + 1) & 0xffff'ffffULL;
}

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

/// Polls `condition` for at most `limit`; whether it came true.
template <typename Condition>
bool spin_until(const Condition& condition, std::chrono::microseconds limit) {
  constexpr int kPollsPerClockRead = 32;
  if (condition()) return true;
  const Clock::time_point end = Clock::now() + limit;
  do {
    for (int i = 0; i < kPollsPerClockRead; ++i) {
      relax();
      if (condition()) return true;
    }
  } while (Clock::now() < end);
  return false;
}

}  // namespace

void TaskGroup::assign(Function function, void* context, std::int64_t count) {
  if (count < 0 || count > std::numeric_limits<std::uint32_t>::max()) {
    throw ConfigError(message("[task group] count is ",
                              count,
                              "; allowed: 0 to ",
                              std::numeric_limits<std::uint32_t>::max(),
                              "; give each task more work"));
  }
  HYBRIDGEN_DCHECK(done(), "(task group assigned while in flight)");
  function_ = function;
  context_ = context;
  count_ = count;
}

struct WorkerPool::State {
  struct alignas(kCacheLine) Slot {
    std::atomic<std::uint64_t> word{0};
    std::atomic<TaskGroup*> group{nullptr};
  };
  struct Claim {
    TaskGroup* group = nullptr;
    std::uint64_t unclaimed = 0;  ///< before the claim
  };

  explicit State(std::chrono::microseconds limit) : spin(limit) {}

  /// Takes one task of the oldest group that has any left; group == nullptr if there is none.
  Claim claim();
  /// Takes one task of the group at `position`; group == nullptr if it has none left.
  Claim claim_at(std::uint64_t position);
  static void execute(const Claim& claimed, int worker);
  void work(int worker);
  /// Returns the group's position.
  std::uint64_t push(TaskGroup& group);
  std::uint64_t submit(TaskGroup& group);
  void wait(TaskGroup& group);
  void wake_workers();
  void stop_and_join();
  std::chrono::microseconds spin_limit() const { return spin.load(std::memory_order_relaxed); }

  std::atomic<std::chrono::microseconds> spin;
  std::array<Slot, kRingSize> ring;

  // Positions count all groups ever submitted; the slot is position % kRingSize.
  alignas(kCacheLine) std::atomic<std::uint64_t> head{0};  ///< groups before it have no task left
  alignas(kCacheLine) std::atomic<std::uint64_t> tail{0};  ///< groups before it are in the ring
  alignas(kCacheLine) std::atomic<std::uint32_t> wakeups{0};    ///< idle workers sleep on it
  alignas(kCacheLine) std::atomic<std::uint32_t> completed{0};  ///< waiters sleep on it
  std::atomic<int> sleeping_workers{0};
  std::atomic<int> sleeping_waiters{0};
  std::atomic<bool> stopping{false};
  std::mutex submit_mutex;  ///< one submitter at a time; workers never take it
  std::vector<std::thread> threads;
};

WorkerPool::State::Claim WorkerPool::State::claim_at(std::uint64_t position) {
  Slot& slot = ring[position % kRingSize];
  std::uint64_t word = slot.word.load(std::memory_order_acquire);
  while (generation_of_word(word) == generation_of_position(position) && unclaimed_of(word) != 0) {
    TaskGroup* const group = slot.group.load(std::memory_order_relaxed);
    if (slot.word.compare_exchange_weak(
            word, word - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      return {group, unclaimed_of(word)};
    }
  }
  return {};
}

WorkerPool::State::Claim WorkerPool::State::claim() {
  std::uint64_t position = head.load(std::memory_order_acquire);
  while (position != tail.load(std::memory_order_seq_cst)) {
    if (const Claim claimed = claim_at(position); claimed.group != nullptr) return claimed;
    // Nothing left here. If others moved the head already, go on from where it is now.
    std::uint64_t expected = position;
    const bool moved = head.compare_exchange_strong(
        expected, position + 1, std::memory_order_acq_rel, std::memory_order_acquire);
    position = moved ? position + 1 : expected;
  }
  return {};
}

void WorkerPool::State::execute(const Claim& claimed, int worker) {
  TaskGroup& group = *claimed.group;
  const std::int64_t index = group.count_ - static_cast<std::int64_t>(claimed.unclaimed);
  // Tasks are claimed in order, so all before a failed one run, and the first to fail is known.
  if (index > group.first_failed_.load(std::memory_order_relaxed)) return;
  try {
    group.function_(group.context_, index, worker);
  } catch (...) {
    const std::lock_guard<std::mutex> lock(group.error_mutex_);
    if (index < group.first_failed_.load(std::memory_order_relaxed)) {
      group.first_failed_.store(index, std::memory_order_relaxed);
      group.error_ = std::current_exception();  // read by wait() after `remaining_` reached 0
    }
  }
}

void WorkerPool::State::work(int worker) {
  flush_denormals_in_current_thread();
  const auto has_work = [this] {
    return head.load(std::memory_order_relaxed) != tail.load(std::memory_order_seq_cst);
  };
  const auto has_work_or_stops = [this, &has_work] {
    return has_work() || stopping.load(std::memory_order_seq_cst);
  };
  for (;;) {
    const Claim claimed = claim();
    if (claimed.group != nullptr) {
      execute(claimed, worker);
      if (claimed.group->remaining_.fetch_sub(1, std::memory_order_seq_cst) == 1) {
        // The group may be gone from here on.
        if (sleeping_waiters.load(std::memory_order_seq_cst) != 0) {
          completed.fetch_add(1, std::memory_order_seq_cst);
          completed.notify_all();
        }
      }
      continue;
    }
    if (stopping.load(std::memory_order_seq_cst) && !has_work()) return;
    if (spin_until(has_work_or_stops, spin_limit())) continue;
    // Sequentially consistent on both sides: either the submitter sees the sleeper, or the sleeper
    // sees the new tail.
    sleeping_workers.fetch_add(1, std::memory_order_seq_cst);
    const std::uint32_t seen = wakeups.load(std::memory_order_seq_cst);
    if (!has_work_or_stops()) wakeups.wait(seen, std::memory_order_seq_cst);
    sleeping_workers.fetch_sub(1, std::memory_order_relaxed);
  }
}

std::uint64_t WorkerPool::State::push(TaskGroup& group) {
  const std::lock_guard<std::mutex> lock(submit_mutex);
  const std::uint64_t position = tail.load(std::memory_order_relaxed);
  const auto has_room = [this, position] {
    std::uint64_t first = head.load(std::memory_order_acquire);
    // Workers may all be busy while run() uses up one group after the other.
    if (position - first == kRingSize &&
        unclaimed_of(ring[first % kRingSize].word.load(std::memory_order_acquire)) == 0) {
      head.compare_exchange_strong(first, first + 1, std::memory_order_acq_rel);
    }
    return position - head.load(std::memory_order_acquire) < kRingSize;
  };
  while (!spin_until(has_room, spin_limit())) std::this_thread::yield();
  Slot& slot = ring[position % kRingSize];
  slot.group.store(&group, std::memory_order_relaxed);
  slot.word.store(
      make_word(generation_of_position(position), static_cast<std::uint64_t>(group.count_)),
      std::memory_order_release);
  tail.store(position + 1, std::memory_order_seq_cst);
  return position;
}

void WorkerPool::State::wake_workers() {
  if (sleeping_workers.load(std::memory_order_seq_cst) == 0) return;
  wakeups.fetch_add(1, std::memory_order_seq_cst);
  wakeups.notify_all();
}

std::uint64_t WorkerPool::State::submit(TaskGroup& group) {
  HYBRIDGEN_DCHECK(group.done(), "(task group submitted while in flight)");
  group.first_failed_.store(TaskGroup::kNoneFailed, std::memory_order_relaxed);
  group.error_ = nullptr;
  group.remaining_.store(group.count_, std::memory_order_relaxed);
  const std::uint64_t position = push(group);
  wake_workers();
  return position;
}

void WorkerPool::State::wait(TaskGroup& group) {
  const auto done = [&group] { return group.remaining_.load(std::memory_order_seq_cst) == 0; };
  if (!spin_until(done, spin_limit())) {
    // The same handshake as for sleeping workers, with the worker that finishes the last task.
    sleeping_waiters.fetch_add(1, std::memory_order_seq_cst);
    for (;;) {
      const std::uint32_t seen = completed.load(std::memory_order_seq_cst);
      if (done()) break;
      completed.wait(seen, std::memory_order_seq_cst);
    }
    sleeping_waiters.fetch_sub(1, std::memory_order_relaxed);
  }
  if (group.error_ != nullptr) {
    std::rethrow_exception(std::exchange(group.error_, nullptr));
  }
}

void WorkerPool::State::stop_and_join() {
  stopping.store(true, std::memory_order_seq_cst);
  wake_workers();
  for (std::thread& thread : threads) thread.join();
  threads.clear();
}

WorkerPool::WorkerPool(Options options) : state_(std::make_unique<State>(options.spin)) {
  if (options.cpus.empty()) {
    throw ConfigError(
        "[worker pool] number of CPUs is 0; allowed: >= 1; pass one entry per thread, -1 for a "
        "thread that is not pinned");
  }
  State* const state = state_.get();
  try {
    state->threads.reserve(options.cpus.size());
    for (std::size_t i = 0; i < options.cpus.size(); ++i) {
      const int worker = static_cast<int>(i);
      state->threads.push_back(
          start_engine_thread(message("[worker pool] thread ", worker, " of ", options.cpus.size()),
                              [state, worker] { state->work(worker); }));
      const pthread_t handle = state->threads.back().native_handle();
      static_cast<void>(pthread_setname_np(handle, message("hybridgen-", worker).c_str()));
      if (options.cpus[i] >= 0) {
        pin_thread(handle, {options.cpus[i]}, "worker pool");
      } else if (openmp_binds_threads()) {
        pin_thread(handle, available_cpus(), "worker pool");  // not the creator's place
      }
    }
  } catch (...) {
    state->stop_and_join();
    throw;
  }
}

WorkerPool::~WorkerPool() {
  if (!maker_.is_this_one()) {
    [[maybe_unused]] const auto* left_alone = state_.release();
    return;
  }
  state_->stop_and_join();
}

int WorkerPool::size() const { return static_cast<int>(state_->threads.size()); }

void WorkerPool::set_spin(std::chrono::microseconds spin) {
  state_->spin.store(spin, std::memory_order_relaxed);
}

void WorkerPool::submit(TaskGroup& group) {
  if (group.count_ > 0) group.position_ = state_->submit(group);
}

void WorkerPool::wait(TaskGroup& group) { state_->wait(group); }

void WorkerPool::finish(TaskGroup& group) {
  while (!group.done()) {
    const State::Claim claimed = state_->claim_at(group.position_);
    if (claimed.group == nullptr) break;
    State::execute(claimed, size());
    group.remaining_.fetch_sub(1, std::memory_order_seq_cst);
  }
  state_->wait(group);
}

void WorkerPool::run(TaskGroup& group) {
  submit(group);
  finish(group);
}

}  // namespace hybridgen
