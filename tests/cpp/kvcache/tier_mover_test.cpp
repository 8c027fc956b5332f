// SPDX-License-Identifier: Apache-2.0
#include "kvcache/tier_mover.h"

#include <gtest/gtest.h>

#include <future>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

TierMove move_of(std::int64_t request, std::int64_t index, std::function<void()> work) {
  return {.block = {request, KvSide::kValues, index},
          .bytes = 7,
          .from = BlockPlace::kDram,
          .to = BlockPlace::kCxl,
          .work = std::move(work)};
}

TEST(TierMover, DoesMovesInTheirOrderAndHandsThemBack) {
  TraceRecorder trace;
  TierMover mover(trace);
  std::vector<int> order;
  for (int i = 0; i < 20; ++i) {
    mover.add(move_of(0, i, [&order, i] { order.push_back(i); }));
  }
  EXPECT_EQ(mover.num_under_way(), 20);
  std::vector<std::int64_t> done;
  while (mover.num_under_way() > 0) {
    for (const TierMoveDone& one : mover.take_done(/*waits=*/true)) {
      EXPECT_EQ(one.error, nullptr);
      done.push_back(one.move.block.index);
    }
  }
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
    EXPECT_EQ(done[static_cast<std::size_t>(i)], i);
  }
  EXPECT_TRUE(mover.take_done(/*waits=*/true).empty());
}

TEST(TierMover, AFailureIsThatMovesAlone) {
  TraceRecorder trace;
  TierMover mover(trace);
  mover.add(move_of(0, 0, [] { throw OutOfMemoryError("full"); }));
  mover.add(move_of(0, 1, [] {}));
  std::vector<TierMoveDone> done;
  while (mover.num_under_way() > 0) {
    for (TierMoveDone& one : mover.take_done(true)) done.push_back(std::move(one));
  }
  ASSERT_EQ(done.size(), 2U);
  EXPECT_THROW(std::rethrow_exception(done[0].error), OutOfMemoryError);
  EXPECT_EQ(done[1].error, nullptr);
}

TEST(TierMover, ARequestThatEndsWaitsForItsOwnMoveAndLeavesOutTheRest) {
  TraceRecorder trace;
  TierMover mover(trace);
  std::promise<void> begun;
  std::promise<void> may_end;
  bool has_ended = false;
  int later = 0;
  mover.add(move_of(1, 0, [&] {
    begun.set_value();
    may_end.get_future().wait();
    has_ended = true;
  }));
  mover.add(move_of(1, 1, [&] { ++later; }));
  mover.add(move_of(2, 0, [&] { later += 10; }));
  begun.get_future().wait();
  std::vector<std::int64_t> forgotten;
  mover.forget(1, [&](const TierMove& move) {
    forgotten.push_back(move.block.index);
    if (move.block.index == 1) may_end.set_value();  // the one behind is left out already
  });
  EXPECT_TRUE(has_ended);
  EXPECT_EQ(forgotten, (std::vector<std::int64_t>{1, 0}));
  while (mover.num_under_way() > 0) {
    for (const TierMoveDone& one : mover.take_done(true)) EXPECT_EQ(one.move.block.request, 2);
  }
  EXPECT_EQ(later, 10);
}

TEST(TierMover, ItsMovesAreSpansOfALaneOfTheirOwn) {
  TraceRecorder trace;
  trace.start(4);
  {
    TierMover mover(trace);
    mover.add(move_of(3, 0, [] {}));
    static_cast<void>(mover.take_done(true));
  }
  trace.stop();
  const std::vector<TraceSpan> spans = trace.spans();
  ASSERT_EQ(spans.size(), 1U);
  const TraceSpan& span = spans.front();
  EXPECT_EQ(span.lane, TraceLane::kMoves);
  EXPECT_STREQ(span.name, "values to cxl");
  EXPECT_EQ(span.worker, 3);
  EXPECT_EQ(span.bytes, 7);
}

TEST(TierMover, EndsWithMovesThatNobodyWaitedFor) {
  TraceRecorder trace;
  TierMover mover(trace);
  for (int i = 0; i < 100; ++i) mover.add(move_of(0, i, [] {}));
}

}  // namespace
}  // namespace hybridgen
