// SPDX-License-Identifier: Apache-2.0
#include "kvcache/tier_mover.h"

#include <algorithm>
#include <new>
#include <utility>

#include "runtime/engine_thread.h"

namespace hybridgen {

TierMover::~TierMover() {
  if (!thread_.joinable()) return;
  if (!maker_.is_this_one()) {
    static_cast<void>(new (std::nothrow)
                          std::thread(std::move(thread_)));  // neither joined nor destroyed
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void TierMover::add(TierMove move) {
  if (!thread_.joinable()) {
    thread_ = start_engine_thread("[move keys and values] the thread", [this] { loop(); });
  }
  {
    const std::lock_guard lock(mutex_);
    done_.reserve(static_cast<std::size_t>(num_under_way_) + 1);  // so that loop() never allocates
    waiting_.push_back(std::move(move));
  }
  ++num_under_way_;
  changed_.notify_all();
}

std::vector<TierMoveDone> TierMover::take_done(bool waits) {
  if (num_under_way_ == 0) return {};
  std::unique_lock lock(mutex_);
  if (waits) {
    changed_.wait(lock, [this] { return !done_.empty(); });
  }
  std::vector<TierMoveDone> done = std::exchange(done_, {});
  num_under_way_ -= static_cast<std::int64_t>(done.size());
  done_.reserve(static_cast<std::size_t>(num_under_way_));
  return done;
}

void TierMover::forget(std::int64_t request,
                       const std::function<void(const TierMove&)>& forgotten) {
  if (num_under_way_ == 0) return;
  std::unique_lock lock(mutex_);
  const auto forgets = [&](const TierMove& move) {
    if (move.block.request != request) return false;
    forgotten(move);
    --num_under_way_;
    return true;
  };
  std::erase_if(waiting_, forgets);
  changed_.wait(lock, [&] { return moving_ != request; });
  std::erase_if(done_, [&](const TierMoveDone& done) { return forgets(done.move); });
}

void TierMover::loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (stopping_) return;
    TierMoveDone done{.move = std::move(waiting_.front()), .error = nullptr};
    waiting_.pop_front();
    moving_ = done.move.block.request;
    lock.unlock();
    const std::int64_t begin_ns = TraceRecorder::now_ns();
    try {
      done.move.work();
    } catch (...) {
      done.error = std::current_exception();
    }
    done.move.work = nullptr;  // what it refers to may end from here on
    const std::int64_t end_ns = TraceRecorder::now_ns();
    done.seconds = static_cast<double>(end_ns - begin_ns) * 1e-9;
    trace(done.move, begin_ns, end_ns);
    lock.lock();
    moving_.reset();
    done_.push_back(std::move(done));
    changed_.notify_all();
  }
}

void TierMover::trace(const TierMove& move, std::int64_t begin_ns, std::int64_t end_ns) const {
  if (!trace_.enabled()) return;
  const bool are_keys = move.block.side == KvSide::kKeys;
  const char* name = move.to == BlockPlace::kDram  ? (are_keys ? "keys to dram" : "values to dram")
                     : move.to == BlockPlace::kCxl ? (are_keys ? "keys to cxl" : "values to cxl")
                                                   : (are_keys ? "keys to disk" : "values to disk");
  trace_.record({.name = name,
                 .lane = TraceLane::kMoves,
                 .worker = static_cast<std::int32_t>(move.block.request),
                 .begin_ns = begin_ns,
                 .end_ns = end_ns,
                 .bytes = move.bytes});
}

}  // namespace hybridgen
