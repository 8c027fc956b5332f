// SPDX-License-Identifier: Apache-2.0
#include "memory/disk_queue.h"

#include <pthread.h>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <utility>

#include "hybridgen/core/error.h"
#include "runtime/engine_thread.h"

namespace hybridgen {
namespace {

// What one call takes (IOV_MAX is 1,024).
constexpr std::size_t kMostRanges = 512;

}  // namespace

void DiskQueue::Span::begin() {
  if (active++ == 0) began_ns = TraceRecorder::now_ns();
}

void DiskQueue::Span::end() {
  if (--active == 0) sum_ns += TraceRecorder::now_ns() - began_ns;
}

double DiskQueue::Span::seconds() const {
  const std::int64_t open_ns = active > 0 ? TraceRecorder::now_ns() - began_ns : 0;
  return static_cast<double>(sum_ns + open_ns) * 1e-9;
}

DiskQueue::DiskQueue(DiskTarget& file, TraceRecorder& trace, int depth, std::int64_t piece_bytes)
    : piece_bytes_(piece_bytes), state_(std::make_unique<State>(file, trace)) {
  if (depth < 1 || piece_bytes < kDiskPageBytes || piece_bytes % kDiskPageBytes != 0) {
    throw ConfigError(message("[disk queue] depth is ",
                              depth,
                              " and a piece has ",
                              piece_bytes,
                              " bytes; allowed: depth >= 1 and multiples of ",
                              kDiskPageBytes));
  }
  State* const state = state_.get();
  try {
    state->threads.reserve(static_cast<std::size_t>(depth));
    for (int i = 0; i < depth; ++i) {
      state->threads.push_back(start_engine_thread(
          message("[disk queue] thread ", i, " of ", depth), [state, i] { state->run(i); }));
      static_cast<void>(pthread_setname_np(state->threads.back().native_handle(),
                                           message("hybridgen-io", i).c_str()));
    }
  } catch (...) {
    state->stop_and_join();
    throw;
  }
}

DiskQueue::~DiskQueue() {
  if (!maker_.is_this_one()) {
    [[maybe_unused]] const auto* left_alone = state_.release();
    return;
  }
  state_->stop_and_join();
}

// Ranges that follow each other in the file become one call, up to a multiple of piece_bytes_.
void DiskQueue::cut(DiskTransfer& transfer, std::deque<Piece>& to) const {
  std::int64_t room = 0;
  std::int64_t next_offset = -1;
  for (DiskRange range : transfer.ranges) {
    while (range.bytes > 0) {
      const bool continues =
          range.offset == next_offset && room > 0 && to.back().ranges.size() < kMostRanges;
      if (!continues) {
        to.push_back({.transfer = &transfer, .ranges = {}});
        room = piece_bytes_ - range.offset % piece_bytes_;
      }
      const std::int64_t part = std::min(range.bytes, room);
      to.back().ranges.push_back({.memory = range.memory, .offset = range.offset, .bytes = part});
      range.memory += part;
      range.offset += part;
      range.bytes -= part;
      room -= part;
      next_offset = range.offset;
    }
  }
}

void DiskQueue::submit(DiskTransfer& transfer) {
  std::deque<Piece> pieces;
  cut(transfer, pieces);
  {
    const std::scoped_lock lock(state_->mutex);
    HYBRIDGEN_DCHECK(transfer.pending == 0, "(transfer submitted while in flight)");
    std::deque<Piece>& list =
        transfer.direction == DiskTransfer::Direction::kRead ? state_->reads : state_->writes;
    list.insert(
        list.end(), std::make_move_iterator(pieces.begin()), std::make_move_iterator(pieces.end()));
    transfer.pending = static_cast<std::int64_t>(pieces.size());
    transfer.error = nullptr;
  }
  state_->work.notify_all();
}

void DiskQueue::wait(DiskTransfer& transfer) {
  std::exception_ptr error;
  {
    std::unique_lock lock(state_->mutex);
    if (transfer.pending > 0) {
      Span& waiting = state_->waiting.at(static_cast<std::size_t>(transfer.direction));
      ++state_->statistics.waits;
      waiting.begin();
      const auto is_of_others = [&transfer](const Piece& piece) {
        return piece.transfer != &transfer;
      };
      const auto own =
          std::stable_partition(state_->reads.begin(), state_->reads.end(), is_of_others);
      state_->urgent.insert(state_->urgent.end(),
                            std::make_move_iterator(own),
                            std::make_move_iterator(state_->reads.end()));
      state_->reads.erase(own, state_->reads.end());
      state_->ended.wait(lock, [&transfer] { return transfer.pending == 0; });
      waiting.end();
    }
    error = transfer.error;
  }
  if (error != nullptr) std::rethrow_exception(error);
}

void DiskQueue::cancel(DiskTransfer& transfer) noexcept {
  std::unique_lock lock(state_->mutex);
  for (std::deque<Piece>* list : {&state_->urgent, &state_->reads, &state_->writes}) {
    transfer.pending -= static_cast<std::int64_t>(std::erase_if(
        *list, [&transfer](const Piece& piece) { return piece.transfer == &transfer; }));
  }
  state_->ended.wait(lock, [&transfer] { return transfer.pending == 0; });
  transfer.error = nullptr;
}

DiskStatistics DiskQueue::statistics() const {
  const std::scoped_lock lock(state_->mutex);
  DiskStatistics statistics = state_->statistics;
  statistics.read_s = state_->reading.seconds();
  statistics.read_wait_s = state_->waiting[0].seconds();
  statistics.write_wait_s = state_->waiting[1].seconds();
  return statistics;
}

void DiskQueue::reset_statistics() {
  const std::scoped_lock lock(state_->mutex);
  state_->statistics = {};
  for (Span* span : {&state_->reading, &state_->waiting[0], &state_->waiting[1]}) {
    *span = {.active = span->active, .began_ns = TraceRecorder::now_ns()};
  }
}

// An empty piece: the queue ends.
DiskQueue::Piece DiskQueue::State::next() {
  std::unique_lock lock(mutex);
  work.wait(lock,
            [this] { return is_stopping || !urgent.empty() || !reads.empty() || !writes.empty(); });
  for (std::deque<Piece>* list : {&urgent, &reads, &writes}) {
    if (list->empty()) continue;
    Piece piece = std::move(list->front());
    list->pop_front();
    begin(piece);
    return piece;
  }
  return {};
}

void DiskQueue::State::begin(const Piece& piece) {
  if (piece.transfer->direction == DiskTransfer::Direction::kRead) reading.begin();
}

void DiskQueue::State::end(const Piece& piece, const std::exception_ptr& error) {
  std::int64_t bytes = 0;
  for (const DiskRange& range : piece.ranges) bytes += range.bytes;
  const std::scoped_lock lock(mutex);
  DiskTransfer& transfer = *piece.transfer;
  const bool is_read = transfer.direction == DiskTransfer::Direction::kRead;
  if (is_read) reading.end();
  if (error == nullptr) {
    (is_read ? statistics.read_bytes : statistics.written_bytes) += bytes;
  } else if (transfer.error == nullptr) {
    transfer.error = error;
    for (std::deque<Piece>* list : {&urgent, &reads, &writes}) {
      transfer.pending -= static_cast<std::int64_t>(std::erase_if(
          *list, [&transfer](const Piece& other) { return other.transfer == &transfer; }));
    }
  }
  // Under the lock: whoever waits may end the queue as soon as it sees this.
  if (--transfer.pending == 0) ended.notify_all();
}

void DiskQueue::State::move(const Piece& piece, int thread) {
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  const bool is_read = piece.transfer->direction == DiskTransfer::Direction::kRead;
  is_read ? file.read(piece.ranges) : file.write(piece.ranges);
  if (!trace.enabled()) return;
  std::int64_t bytes = 0;
  for (const DiskRange& range : piece.ranges) bytes += range.bytes;
  trace.record({.name = is_read ? "read" : "write",
                .lane = TraceLane::kDisk,
                .worker = thread,
                .layer = piece.transfer->layer,
                .begin_ns = begin_ns,
                .end_ns = TraceRecorder::now_ns(),
                .bytes = bytes});
}

void DiskQueue::State::run(int thread) {
  for (Piece piece = next(); piece.transfer != nullptr; piece = next()) {
    std::exception_ptr error;
    try {
      move(piece, thread);
    } catch (...) {
      error = std::current_exception();
    }
    end(piece, error);
  }
}

void DiskQueue::State::stop_and_join() {
  {
    const std::scoped_lock lock(mutex);
    is_stopping = true;
  }
  work.notify_all();
  for (std::thread& thread : threads) thread.join();
  threads.clear();
}

}  // namespace hybridgen
