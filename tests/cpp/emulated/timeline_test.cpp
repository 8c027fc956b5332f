// SPDX-License-Identifier: Apache-2.0
#include "emulated/timeline.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>

#include "support/still_clock.h"

namespace hybridgen::emulated {
namespace {

using enum OperationKind;

/// 1 GB/s everywhere, so that a byte takes a nanosecond; no other costs.
MachineProfile byte_per_ns() {
  MachineProfile profile;
  profile.name = "byte per ns";
  profile.tflops = profile.tflops_fp32 = 1000.0;
  profile.hbm_gbs = profile.h2d_gbs = profile.d2h_gbs = 1.0;
  profile.mem_gb = 1.0;
  return profile;
}

class TimelineTest : public ::testing::Test {
 protected:
  Timeline& start(const MachineProfile& profile) {
    profile_ = profile;
    timeline_ = std::make_unique<Timeline>(profile_, std::make_unique<testing::StillClock>(now_));
    return *timeline_;
  }

  std::atomic<std::int64_t> now_ = 1'000'000;
  MachineProfile profile_;
  std::unique_ptr<Timeline> timeline_;
};

TimedOperation on_device(std::int64_t bytes) { return {kElementwise, bytes, 0}; }
TimedOperation down(std::int64_t bytes) { return {kHostToDevice, bytes, bytes}; }
TimedOperation up(std::int64_t bytes) { return {kDeviceToHost, bytes, bytes}; }

TEST_F(TimelineTest, OperationsOfAStreamFollowEachOtherAndStreamsRunBesideEachOther) {
  Timeline& timeline = start(byte_per_ns());
  EXPECT_EQ(timeline.queue(0, on_device(100)), now_ + 100);
  EXPECT_EQ(timeline.queue(0, on_device(50)), now_ + 150);
  EXPECT_EQ(timeline.queue(1, on_device(70)), now_ + 70);
  EXPECT_EQ(timeline.record(0), now_ + 150);
  EXPECT_EQ(timeline.record(2), now_);
}

TEST_F(TimelineTest, AnOperationNeverBeginsBeforeItIsQueued) {
  Timeline& timeline = start(byte_per_ns());
  timeline.queue(0, on_device(100));
  now_ += 500;
  EXPECT_EQ(timeline.queue(0, on_device(100)), now_ + 100);
}

TEST_F(TimelineTest, AStreamThatWaitsBeginsAtTheEvent) {
  Timeline& timeline = start(byte_per_ns());
  const std::int64_t event = timeline.queue(0, on_device(100));
  timeline.wait_on_device(1, event);
  EXPECT_EQ(timeline.queue(1, on_device(10)), event + 10);
  timeline.wait_on_device(1, now_);  // long past
  EXPECT_EQ(timeline.queue(1, on_device(10)), event + 20);
}

TEST_F(TimelineTest, IssuingTakesTheHostsTimeAndADeviceThatIsFasterWaitsForIt) {
  MachineProfile profile = byte_per_ns();
  profile.launch_us = 1.0;
  Timeline& timeline = start(profile);
  EXPECT_EQ(timeline.queue(0, on_device(10)), now_ + 10);  // ready to be issued
  EXPECT_EQ(timeline.queue(0, on_device(10)), now_ + 1'010);
  EXPECT_EQ(timeline.queue(0, on_device(5'000)), now_ + 7'000);
  EXPECT_EQ(timeline.queue(0, on_device(10)), now_ + 7'010);  // issued long before
  now_ += 100'000;  // the host did something else: nothing is owed for it
  EXPECT_EQ(timeline.queue(0, on_device(10)), now_ + 10);
}

TEST_F(TimelineTest, CopiesOfOneDirectionFollowEachOtherOnWhateverStream) {
  Timeline& timeline = start(byte_per_ns());
  EXPECT_EQ(timeline.queue(0, down(100)), now_ + 100);
  EXPECT_EQ(timeline.queue(1, down(100)), now_ + 200);
  EXPECT_EQ(timeline.queue(2, up(100)), now_ + 100);
}

TEST_F(TimelineTest, ACopyBesideOneInTheOtherDirectionHasTheDuplexRate) {
  MachineProfile profile = byte_per_ns();
  profile.duplex_factor = 0.5;
  Timeline& timeline = start(profile);
  EXPECT_EQ(timeline.queue(0, down(1'000)), now_ + 1'000);
  EXPECT_EQ(timeline.queue(1, up(100)), now_ + 200);
  EXPECT_EQ(timeline.queue(1, up(2'000)), now_ + 4'200);  // begins beside the first
  EXPECT_EQ(timeline.queue(2, down(10)), now_ + 1'020);
}

TEST_F(TimelineTest, AHostThatWaitsSleepsUntilThenAndUntilItIsWoken) {
  MachineProfile profile = byte_per_ns();
  profile.sync_us = 2.0;
  Timeline& timeline = start(profile);
  const std::int64_t end = timeline.queue(0, on_device(100));
  EXPECT_FALSE(timeline.is_done(end));
  timeline.host_wait(end, /*is_driver=*/true);
  EXPECT_EQ(now_, end + 2'000);
  EXPECT_TRUE(timeline.is_done(end));
  timeline.host_wait(end, /*is_driver=*/true);  // nothing to wait for
  EXPECT_EQ(now_, end + 2'000);
}

TEST_F(TimelineTest, TheDriverDoesNotOvertakeWhatItHasIssued) {
  MachineProfile profile = byte_per_ns();
  profile.launch_us = 1.0;
  Timeline& timeline = start(profile);
  const std::int64_t begin = now_;
  const std::int64_t first = timeline.queue(0, on_device(10));
  for (int i = 0; i < 5; ++i) timeline.queue(0, on_device(10));
  timeline.host_wait(first, /*is_driver=*/false);
  EXPECT_EQ(now_, first);
  timeline.host_wait(first, /*is_driver=*/true);
  EXPECT_EQ(now_, begin + 5'000);
}

TEST_F(TimelineTest, BusyTimesAreTheSumsOfTheCostModel) {
  MachineProfile profile = byte_per_ns();
  profile.launch_us = 1.0;
  profile.setup_us = 3.0;
  Timeline& timeline = start(profile);
  double device_s = 0.0;
  for (const std::int64_t bytes : {10, 1'000, 50'000}) {
    device_s += operation_time(profile, on_device(bytes)).busy_s;
    timeline.queue(0, on_device(bytes));
  }
  timeline.queue(1, down(2'000));
  timeline.queue(1, up(3'000));
  const BusyTime busy = timeline.busy_time();
  EXPECT_DOUBLE_EQ(busy.device_s, device_s);
  EXPECT_DOUBLE_EQ(busy.issue_s, 3e-6);
  EXPECT_NEAR(busy.to_device_s, 5e-6, 1e-12);
  EXPECT_NEAR(busy.to_host_s, 6e-6, 1e-12);
  timeline.reset_busy_time();
  EXPECT_EQ(timeline.busy_time().device_s, 0.0);
}

TEST(Timeline, OnTheRealClockAWaitEndsNoEarlierThanTheDevice) {
  MachineProfile profile = byte_per_ns();
  profile.sync_us = 5.0;
  Timeline timeline(profile);
  const auto begin = std::chrono::steady_clock::now();
  timeline.host_wait(timeline.queue(0, on_device(3'000'000)), /*is_driver=*/true);
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::microseconds(3'005));
}

}  // namespace
}  // namespace hybridgen::emulated
