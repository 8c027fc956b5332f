// SPDX-License-Identifier: Apache-2.0
// Threads that read and write files beside everything else. A transfer is the token:
// who submitted it waits for it, or cancels it.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "hybridgen/memory/disk_statistics.h"
#include "hybridgen/runtime/trace_recorder.h"
#include "memory/disk_file.h"
#include "runtime/process.h"

namespace hybridgen {

/// Ranges of a file to move in one direction. Not movable; reuse it once it has been waited for or
/// cancelled, which it must be before it or its memory goes.
struct DiskTransfer {
  enum class Direction : std::uint8_t { kRead, kWrite };
  Direction direction = Direction::kRead;
  std::vector<DiskRange> ranges;  ///< those that follow each other in the file become one call
  std::int32_t layer = -1;        ///< for the trace

  DiskTransfer() = default;
  DiskTransfer(const DiskTransfer&) = delete;
  DiskTransfer& operator=(const DiskTransfer&) = delete;

 private:
  friend class DiskQueue;
  // Of the queue's mutex.
  std::int64_t pending = 0;    ///< pieces that are waiting or being moved
  std::exception_ptr error{};  ///< the first
};

class DiskQueue {
 public:
  /// Calls that are under way at a time, each on a thread of its own, and bytes of one of them,
  /// which ends where the file is a multiple of them.
  static constexpr int kDefaultDepth = 8;
  static constexpr std::int64_t kDefaultPieceBytes = std::int64_t{1} << 20;

  /// Both references must outlive it. DeviceError if the threads cannot be had.
  DiskQueue(DiskTarget& file,
            TraceRecorder& trace,
            int depth = kDefaultDepth,
            std::int64_t piece_bytes = kDefaultPieceBytes);
  /// All transfers must have ended.
  ~DiskQueue();
  DiskQueue(const DiskQueue&) = delete;
  DiskQueue& operator=(const DiskQueue&) = delete;

  int depth() const { return static_cast<int>(state_->threads.size()); }

  /// Starts it: reads before writes, each in the order of submission. It must stay untouched until
  /// wait() or cancel(). No ranges: nothing happens.
  void submit(DiskTransfer& transfer);
  /// Blocks until it has ended, before all reads that nobody waits for, and throws what the first
  /// piece that failed threw (DiskFile::read); the rest of such a transfer is left out. Several
  /// threads may wait for the same one.
  void wait(DiskTransfer& transfer);
  /// What has not begun is left out; returns when the rest has ended. Never throws.
  void cancel(DiskTransfer& transfer) noexcept;

  /// Sums since the queue was made, or since reset_statistics().
  DiskStatistics statistics() const;
  void reset_statistics();

 private:
  /// Ranges [begin, end) of a transfer, cut to piece_bytes.
  struct Piece {
    DiskTransfer* transfer = nullptr;
    std::vector<DiskRange> ranges;
  };
  /// Time during which something was so, of however many.
  struct Span {
    int active = 0;
    std::int64_t began_ns = 0;
    std::int64_t sum_ns = 0;
    void begin();
    void end();
    double seconds() const;
  };
  /// What the threads use; a forked child, which has none of them, leaves it alone.
  struct State {
    State(DiskTarget& file_, TraceRecorder& trace_) : file(file_), trace(trace_) {}
    DiskTarget& file;
    TraceRecorder& trace;
    mutable std::mutex mutex;
    std::condition_variable work;
    std::condition_variable ended;
    std::deque<Piece> urgent;  ///< reads that somebody waits for
    std::deque<Piece> reads;
    std::deque<Piece> writes;
    bool is_stopping = false;
    Span reading;
    std::array<Span, 2> waiting;  ///< for reads, for writes
    DiskStatistics statistics;
    std::vector<std::thread> threads;

    void run(int thread);
    Piece next();
    void begin(const Piece& piece);
    void end(const Piece& piece, const std::exception_ptr& error);
    void move(const Piece& piece, int thread);
    void stop_and_join();
  };

  void cut(DiskTransfer& transfer, std::deque<Piece>& to) const;

  std::int64_t piece_bytes_;
  std::unique_ptr<State> state_;
  MakerProcess maker_;
};

}  // namespace hybridgen
