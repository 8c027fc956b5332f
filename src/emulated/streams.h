// SPDX-License-Identifier: Apache-2.0
// Streams of an emulated device: queues of operations, each in order, with waits between them.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "emulated/device_memory.h"

namespace hybridgen::emulated {

/// When queued operations run. Results must not depend on it.
enum class Mode : std::uint8_t {
  kEager,    ///< at once, on the thread that queues them
  kThreads,  ///< on a thread per stream
  kDelays,   ///< the same, after random delays of some
  kLazy      ///< only when something waits for them, and no others: what is not waited for is late
};

/// The first `number` operations of a stream.
struct Ticket {
  StreamIndex stream = 0;
  std::uint64_t number = 0;
};

class Streams {
 public:
  static constexpr StreamIndex kCount = 65;  ///< the default stream and two pools of 32

  Streams() = default;
  ~Streams();
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  /// Waits for all work first. `seed`: of the delays.
  void set_mode(Mode mode, std::uint64_t seed);
  Mode mode() const;

  /// Queues `work`. What it throws is thrown by the next host_wait().
  Ticket enqueue(StreamIndex stream, std::function<void()> work);
  /// Later operations of `stream` begin after those of `ticket`.
  void wait_on_device(StreamIndex stream, Ticket ticket);
  Ticket end_of(StreamIndex stream) const;

  bool is_done(Ticket ticket);
  /// The calling thread waits. Throws what an operation threw since the last such wait.
  void host_wait(Ticket ticket);
  void host_wait_for_all();

 private:
  struct Item {
    std::function<void()> work;  ///< null: a wait
    Ticket waits_for;
  };
  struct Queue {
    std::deque<Item> items;
    std::uint64_t enqueued = 0;
    std::uint64_t done = 0;
    std::thread thread;
    std::uint64_t random = 0;
  };
  bool has_threads() const { return mode_ == Mode::kThreads || mode_ == Mode::kDelays; }
  Ticket push(StreamIndex stream, Item item);
  void run_until(Ticket ticket);
  void run(std::function<void()>& work);
  void serve(Queue& queue);
  void stop_threads();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::array<Queue, kCount> queues_;
  Mode mode_ = Mode::kEager;
  bool stopping_ = false;
  std::mutex error_mutex_;
  std::exception_ptr error_;  ///< the first
};

}  // namespace hybridgen::emulated
