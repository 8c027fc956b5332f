// SPDX-License-Identifier: Apache-2.0
#include "emulated/streams.h"

#include <omp.h>

#include <chrono>
#include <utility>

#include "runtime/engine_thread.h"

namespace hybridgen::emulated {
namespace {

// Few and long, so that streams overtake each other by several operations in little time.
constexpr std::uint64_t kMostDelayUs = 600;
constexpr std::uint64_t kOperationsPerDelay = 8;

void sleep_at_random(std::uint64_t& state) {
  state ^= state << 13U;
  state ^= state >> 7U;
  state ^= state << 17U;
  if ((state >> 32U) % kOperationsPerDelay != 0) return;
  std::this_thread::sleep_for(std::chrono::microseconds(state % (kMostDelayUs + 1)));
}

}  // namespace

Streams::~Streams() { stop_threads(); }

void Streams::set_mode(Mode mode, std::uint64_t seed) {
  host_wait_for_all();
  stop_threads();
  const std::lock_guard lock(mutex_);
  mode_ = mode;
  for (StreamIndex i = 0; i < kCount; ++i) {
    queues_[i].random = (seed + i + 1) * 0x9E3779B97F4A7C15ULL | 1U;
  }
}

Mode Streams::mode() const {
  const std::lock_guard lock(mutex_);
  return mode_;
}

Ticket Streams::enqueue(StreamIndex stream, std::function<void()> work) {
  return push(stream, {std::move(work), {}});
}

void Streams::wait_on_device(StreamIndex stream, Ticket ticket) { push(stream, {{}, ticket}); }

Ticket Streams::push(StreamIndex stream, Item item) {
  Queue& queue = queues_.at(stream);
  const std::lock_guard lock(mutex_);
  queue.items.push_back(std::move(item));
  const Ticket ticket{stream, ++queue.enqueued};
  if (mode_ == Mode::kEager) {
    run_until(ticket);
  } else if (has_threads()) {
    if (!queue.thread.joinable()) {
      queue.thread =
          start_engine_thread("[emulated stream] the thread", [this, &queue] { serve(queue); });
    }
    changed_.notify_all();
  }
  return ticket;
}

Ticket Streams::end_of(StreamIndex stream) const {
  const std::lock_guard lock(mutex_);
  return {stream, queues_.at(stream).enqueued};
}

bool Streams::is_done(Ticket ticket) {
  const std::lock_guard lock(mutex_);
  if (!has_threads()) {
    run_until(ticket);  // a thread that polls would never see it done
  }
  return queues_.at(ticket.stream).done >= ticket.number;
}

void Streams::host_wait(Ticket ticket) {
  {
    std::unique_lock lock(mutex_);
    if (has_threads()) {
      changed_.wait(lock, [&] { return queues_.at(ticket.stream).done >= ticket.number; });
    } else {
      run_until(ticket);
    }
  }
  const std::lock_guard lock(error_mutex_);
  if (error_) {
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

void Streams::host_wait_for_all() {
  for (StreamIndex i = 0; i < kCount; ++i) {
    host_wait(end_of(i));
  }
}

// With the lock held: whoever else queues meanwhile waits. No circle: a wait is for what was queued
// before it.
void Streams::run_until(Ticket ticket) {
  Queue& queue = queues_.at(ticket.stream);
  while (queue.done < ticket.number) {
    Item item = std::move(queue.items.front());
    queue.items.pop_front();
    if (item.work) {
      run(item.work);
    } else {
      run_until(item.waits_for);
    }
    ++queue.done;
  }
}

// One OpenMP thread, so that sums do not depend on the thread that happens to run them.
void Streams::run(std::function<void()>& work) {
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  try {
    work();
  } catch (...) {
    const std::lock_guard lock(error_mutex_);
    if (!error_) {
      error_ = std::current_exception();
    }
  }
  work = nullptr;
  omp_set_num_threads(threads);
}

void Streams::serve(Queue& queue) {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || !queue.items.empty(); });
    if (queue.items.empty()) {
      return;
    }
    Item item = std::move(queue.items.front());
    queue.items.pop_front();
    if (item.work) {
      const bool delays = mode_ == Mode::kDelays;
      lock.unlock();
      if (delays) {
        sleep_at_random(queue.random);
      }
      run(item.work);
      lock.lock();
    } else {
      const Ticket awaited = item.waits_for;
      changed_.wait(lock, [&] { return queues_.at(awaited.stream).done >= awaited.number; });
    }
    ++queue.done;
    changed_.notify_all();
  }
}

// They end when their queues are empty.
void Streams::stop_threads() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (Queue& queue : queues_) {
    if (queue.thread.joinable()) {
      queue.thread.join();
      queue.thread = {};
    }
  }
  const std::lock_guard lock(mutex_);
  stopping_ = false;
}

}  // namespace hybridgen::emulated
