// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/runtime/trace_recorder.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <set>
#include <thread>
#include <vector>

namespace hybridgen {
namespace {

TraceSpan span_at(std::int64_t begin_ns) {
  return {.name = "span", .begin_ns = begin_ns, .end_ns = begin_ns + 1};
}

TEST(TraceRecorder, RecordsNothingUnlessStarted) {
  TraceRecorder recorder;
  recorder.record(span_at(1));
  EXPECT_FALSE(recorder.enabled());
  EXPECT_TRUE(recorder.spans().empty());
  recorder.start(4);
  recorder.stop();
  recorder.record(span_at(2));
  EXPECT_TRUE(recorder.spans().empty());
  EXPECT_EQ(recorder.dropped(), 0);
}

TEST(TraceRecorder, ReturnsSpansInTheOrderTheyBegan) {
  TraceRecorder recorder;
  recorder.start(10);
  for (const std::int64_t begin : {30, 10, 20}) recorder.record(span_at(begin));
  recorder.stop();
  const std::vector<TraceSpan> spans = recorder.spans();
  ASSERT_EQ(spans.size(), 3U);
  EXPECT_EQ(spans[0].begin_ns, 10);
  EXPECT_EQ(spans[1].begin_ns, 20);
  EXPECT_EQ(spans[2].begin_ns, 30);
}

TEST(TraceRecorder, KeepsEveryField) {
  TraceRecorder recorder;
  recorder.start(1);
  recorder.record({.name = "copy",
                   .lane = TraceLane::kLink,
                   .worker = 2,
                   .layer = 3,
                   .step = 4,
                   .begin_ns = 5,
                   .end_ns = 6,
                   .bytes = 7});
  recorder.stop();
  const TraceSpan span = recorder.spans().at(0);
  EXPECT_STREQ(span.name, "copy");
  EXPECT_EQ(span.lane, TraceLane::kLink);
  EXPECT_EQ(span.worker, 2);
  EXPECT_EQ(span.layer, 3);
  EXPECT_EQ(span.step, 4);
  EXPECT_EQ(span.begin_ns, 5);
  EXPECT_EQ(span.end_ns, 6);
  EXPECT_EQ(span.bytes, 7);
}

TEST(TraceRecorder, CountsWhatDidNotFit) {
  TraceRecorder recorder;
  recorder.start(2);
  for (std::int64_t i = 0; i < 5; ++i) recorder.record(span_at(i));
  recorder.stop();
  EXPECT_EQ(recorder.spans().size(), 2U);
  EXPECT_EQ(recorder.dropped(), 3);
}

TEST(TraceRecorder, StartForgetsTheRecordingBefore) {
  TraceRecorder recorder;
  recorder.start(1);
  recorder.record(span_at(1));
  recorder.record(span_at(2));
  recorder.start(3);
  recorder.record(span_at(9));
  recorder.stop();
  ASSERT_EQ(recorder.spans().size(), 1U);
  EXPECT_EQ(recorder.spans()[0].begin_ns, 9);
  EXPECT_EQ(recorder.dropped(), 0);
}

TEST(TraceRecorder, LosesNoSpanOfConcurrentThreads) {
  constexpr std::int64_t kPerThread = 500;
  TraceRecorder recorder;
  recorder.start(3 * kPerThread);
  std::vector<std::thread> threads;
  for (std::int64_t thread = 0; thread < 3; ++thread) {
    threads.emplace_back([&recorder, thread] {
      for (std::int64_t i = 0; i < kPerThread; ++i) recorder.record(span_at(thread * 1000 + i));
    });
  }
  for (std::thread& thread : threads) thread.join();
  recorder.stop();
  std::set<std::int64_t> begins;
  for (const TraceSpan& span : recorder.spans()) begins.insert(span.begin_ns);
  EXPECT_EQ(begins.size(), static_cast<std::size_t>(3 * kPerThread));
}

TEST(TraceRecorder, CanBeStoppedReadAndStartedWhileThreadsRecord) {
  TraceRecorder recorder;
  std::atomic<bool> finished{false};
  std::thread writer([&] {
    for (std::int64_t i = 1; !finished.load(); ++i) recorder.record(span_at(i));
  });
  bool whole = true;
  for (int repeat = 0; repeat < 50; ++repeat) {
    recorder.start(64);
    std::this_thread::yield();
    recorder.stop();
    for (const TraceSpan& span : recorder.spans())
      whole = whole && span.end_ns == span.begin_ns + 1;
  }
  finished.store(true);
  writer.join();
  EXPECT_TRUE(whole);
}

TEST(TraceRecorder, ItsClockNeverGoesBack) {
  const std::int64_t before = TraceRecorder::now_ns();
  EXPECT_LE(before, TraceRecorder::now_ns());
}

}  // namespace
}  // namespace hybridgen
