// SPDX-License-Identifier: Apache-2.0
// Moves blocks between tiers on a thread of its own, one after the other in the order in which they
// were asked for. Knows neither ledger nor rooms: what came of a move its owner learns when it
// asks.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "hybridgen/runtime/trace_recorder.h"
#include "kvcache/tier_blocks.h"
#include "runtime/process.h"

namespace hybridgen {

struct TierMove {
  BlockId block;
  std::int64_t bytes = 0;
  BlockPlace from = BlockPlace::kDram;
  BlockPlace to = BlockPlace::kDram;
  std::function<void()> work;  ///< what it throws is TierMoveDone::error
  /// Of pinned blocks: what work brings are copies, which their owner has yet to switch to.
  bool is_by_copy = false;
  bool has_contents = false;  ///< of the copies
};

struct TierMoveDone {
  TierMove move;
  std::exception_ptr error;  ///< null: the block is where it was to go
  double seconds = 0.0;
};

/// All but what moves do is for one thread. In a forked child, where its thread is not, it lets go.
class TierMover {
 public:
  /// Moves are spans of `trace`, which must outlive this.
  explicit TierMover(TraceRecorder& trace) : trace_(trace) {}
  /// Waits for the move under way; those behind it are not done.
  ~TierMover();
  TierMover(const TierMover&) = delete;
  TierMover& operator=(const TierMover&) = delete;

  /// Throws DeviceError if the thread, which the first move starts, cannot be created.
  void add(TierMove move);
  /// Moves that were added and have not come back by take_done().
  std::int64_t num_under_way() const { return num_under_way_; }
  /// Those that ended since it was last called, in their order. `waits`: for one at least, if any
  /// is under way.
  std::vector<TierMoveDone> take_done(bool waits);
  /// Waits for the request's move under way and leaves out those behind it. None comes back: each
  /// is shown to `forgotten`, which may not throw.
  void forget(std::int64_t request, const std::function<void(const TierMove&)>& forgotten);

 private:
  void loop();
  void trace(const TierMove& move, std::int64_t begin_ns, std::int64_t end_ns) const;

  TraceRecorder& trace_;
  std::int64_t num_under_way_ = 0;
  std::mutex mutex_;  ///< of all below
  std::condition_variable changed_;
  std::deque<TierMove> waiting_;
  std::optional<std::int64_t> moving_;  ///< whose block moves now
  std::vector<TierMoveDone> done_;
  bool stopping_ = false;
  MakerProcess maker_;
  std::thread thread_;
};

}  // namespace hybridgen
