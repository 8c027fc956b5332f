// SPDX-License-Identifier: Apache-2.0
#include "memory/disk_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cpp/memory/faulty_disk.h"
#include "memory/host_buffer.h"
#include "support/forked_child.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kPage = kDiskPageBytes;
using Direction = DiskTransfer::Direction;

/// Holds calls until it is opened.
class Gate {
 public:
  void open() {
    const std::scoped_lock lock(mutex_);
    is_open_ = true;
    changed_.notify_all();
  }
  void pass() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return is_open_; });
  }
  void wait_for(int waiting) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ >= waiting; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_open_ = false;
  int waiting_ = 0;
};

class DiskQueues : public testing::Test {
 protected:
  static constexpr std::int64_t kSlotBytes = 8 * kPage;

  void fill(DiskTransfer& transfer, Direction direction, const DiskSlot& slot, HostBuffer& memory) {
    transfer.direction = direction;
    transfer.ranges.clear();
    slot.append_ranges(0, slot.size_bytes(), memory.data(), transfer.ranges);
  }
  void run(DiskQueue& queue, Direction direction, const DiskSlot& slot, HostBuffer& memory) {
    DiskTransfer transfer;
    fill(transfer, direction, slot, memory);
    queue.submit(transfer);
    queue.wait(transfer);
  }
  static HostBuffer filled(std::byte value) {
    HostBuffer memory(kSlotBytes);
    std::fill_n(memory.data(), kSlotBytes, value);
    return memory;
  }
  static bool holds(const HostBuffer& memory, std::byte value) {
    return std::all_of(memory.data(), memory.data() + memory.size_bytes(), [value](std::byte b) {
      return b == value;
    });
  }

  TestFolder folder_;
  FaultyDisk calls_;
  TraceRecorder trace_;
  DiskFile file_{folder_.string(), 1024 * kPage, calls_};
};

TEST_F(DiskQueues, GiveBackWhatWasWrittenWhateverTheirDepthAndPieces) {
  for (const int depth : {1, 2, 7}) {
    for (const std::int64_t piece : {kPage, 3 * kPage, 64 * kPage}) {
      DiskQueue queue(file_, trace_, depth, piece);
      EXPECT_EQ(queue.depth(), depth);
      std::vector<DiskSlot> slots;
      std::vector<HostBuffer> memory;
      std::vector<std::unique_ptr<DiskTransfer>> transfers;
      for (int i = 0; i < 9; ++i) {
        slots.push_back(file_.take(kSlotBytes));
        memory.push_back(filled(static_cast<std::byte>(i + 1)));
        transfers.push_back(std::make_unique<DiskTransfer>());
        fill(*transfers.back(), Direction::kWrite, slots.back(), memory.back());
        queue.submit(*transfers.back());
      }
      for (auto& transfer : transfers) queue.wait(*transfer);
      for (std::size_t i = 0; i < slots.size(); ++i) {
        memory[i] = filled(std::byte{0});
        fill(*transfers[i], Direction::kRead, slots[i], memory[i]);
        queue.submit(*transfers[i]);
      }
      for (std::size_t i = slots.size(); i-- > 0;) {
        queue.wait(*transfers[i]);
        EXPECT_TRUE(holds(memory[i], static_cast<std::byte>(i + 1)));
      }
      EXPECT_EQ(queue.statistics().read_bytes, 9 * kSlotBytes);
      EXPECT_EQ(queue.statistics().written_bytes, 9 * kSlotBytes);
    }
  }
}

TEST_F(DiskQueues, RangesThatFollowEachOtherInTheFileAreOneCall) {
  DiskQueue queue(file_, trace_, 1);
  const DiskSlot slot = file_.take(kSlotBytes);
  HostBuffer memory = filled(std::byte{1});
  DiskTransfer transfer;
  transfer.direction = Direction::kWrite;
  for (int page = 0; page < 8; ++page) {  // each from elsewhere
    slot.append_ranges(page * kPage, kPage, memory.data() + (7 - page) * kPage, transfer.ranges);
  }
  std::atomic<int> writes{0};
  calls_.answer = [&](DiskCall call, int) -> std::optional<std::int64_t> {
    writes += call == DiskCall::kWrite ? 1 : 0;
    return std::nullopt;
  };
  queue.submit(transfer);
  queue.wait(transfer);
  EXPECT_EQ(writes, 1);
}

/// Writes down what it is asked for.
class Listener final : public DiskTarget {
 public:
  void read(std::span<const DiskRange> ranges) override {
    std::int64_t bytes = 0;
    for (const DiskRange& range : ranges) bytes += range.bytes;
    const std::scoped_lock lock(mutex_);
    calls_.insert({ranges.front().offset, bytes});
  }
  void write(std::span<const DiskRange>) override {}
  const std::set<std::pair<std::int64_t, std::int64_t>>& calls() const { return calls_; }

 private:
  std::mutex mutex_;
  std::set<std::pair<std::int64_t, std::int64_t>> calls_;  ///< place and bytes
};

// So that no two threads wait for the same huge page of a file, or the same block of a disk.
TEST_F(DiskQueues, PiecesEndAtMultiplesOfTheirSize) {
  Listener file;
  DiskQueue queue(file, trace_, 2, 4 * kPage);
  HostBuffer memory(static_cast<std::size_t>(8 * kPage));
  DiskTransfer transfer;
  transfer.ranges = {{.memory = memory.data(), .offset = 3 * kPage, .bytes = 6 * kPage}};
  queue.submit(transfer);
  queue.wait(transfer);
  EXPECT_EQ(file.calls(),
            (std::set<std::pair<std::int64_t, std::int64_t>>{
                {3 * kPage, kPage}, {4 * kPage, 4 * kPage}, {8 * kPage, kPage}}));
}

TEST_F(DiskQueues, WithoutRangesNothingHappens) {
  DiskQueue queue(file_, trace_);
  DiskTransfer nothing;
  queue.submit(nothing);
  queue.wait(nothing);
  queue.cancel(nothing);
}

TEST_F(DiskQueues, KeepAsManyCallsUnderWayAsTheirDepth) {
  Gate gate;
  calls_.answer = [&](DiskCall call, int) -> std::optional<std::int64_t> {
    if (call == DiskCall::kRead) gate.pass();
    return std::nullopt;
  };
  DiskQueue queue(file_, trace_, 3, kPage);
  const DiskSlot slot = file_.take(kSlotBytes);
  HostBuffer memory(kSlotBytes);
  DiskTransfer transfer;
  fill(transfer, Direction::kRead, slot, memory);
  queue.submit(transfer);
  gate.wait_for(3);  // would hang with fewer
  gate.open();
  queue.wait(transfer);
}

TEST_F(DiskQueues, ReadWhatSomebodyWaitsForBeforeOtherReadsAndThoseBeforeWrites) {
  Gate gate;
  DiskQueue queue(file_, trace_, 1, kSlotBytes);
  std::vector<DiskSlot> slots;
  std::vector<HostBuffer> memory;
  std::vector<std::unique_ptr<DiskTransfer>> transfers;
  for (int i = 0; i < 4; ++i) {
    slots.push_back(file_.take(kSlotBytes));
    memory.push_back(filled(static_cast<std::byte>(i)));
    run(queue, Direction::kWrite, slots.back(), memory.back());
    transfers.push_back(std::make_unique<DiskTransfer>());
  }
  calls_.answer = [&](DiskCall call, int) -> std::optional<std::int64_t> {
    if (call == DiskCall::kRead || call == DiskCall::kWrite) gate.pass();
    return std::nullopt;
  };
  const auto submit = [&](std::size_t i, Direction direction) {
    fill(*transfers[i], direction, slots[i], memory[i]);
    transfers[i]->layer = static_cast<std::int32_t>(i);
    queue.submit(*transfers[i]);
  };
  trace_.start(16);
  submit(0, Direction::kRead);
  gate.wait_for(1);  // it holds the only thread
  submit(1, Direction::kWrite);
  submit(2, Direction::kRead);
  submit(3, Direction::kRead);
  const std::int64_t waits = queue.statistics().waits;
  std::thread waiter([&] { queue.wait(*transfers[3]); });
  while (queue.statistics().waits == waits) std::this_thread::yield();
  gate.open();
  waiter.join();
  for (std::size_t i = 0; i < 3; ++i) queue.wait(*transfers[i]);
  trace_.stop();
  std::vector<std::int32_t> order;
  for (const TraceSpan& span : trace_.spans()) {
    order.push_back(span.layer);
    EXPECT_STREQ(span.name, span.layer == 1 ? "write" : "read");
    EXPECT_EQ(span.lane, TraceLane::kDisk);
    EXPECT_EQ(span.bytes, kSlotBytes);
  }
  EXPECT_EQ(order, (std::vector<std::int32_t>{0, 3, 2, 1}));
}

TEST_F(DiskQueues, AFailureIsThrownToWhoeverWaitsAndTheQueueWorksOn) {
  DiskQueue queue(file_, trace_, 2, kPage);
  const DiskSlot bad = file_.take(kSlotBytes);
  const DiskSlot good = file_.take(kSlotBytes);
  HostBuffer memory = filled(std::byte{7});
  HostBuffer others = filled(std::byte{9});
  run(queue, Direction::kWrite, bad, memory);
  run(queue, Direction::kWrite, good, others);
  std::atomic<int> reads{0};
  calls_.answer = [&](DiskCall call, int) -> std::optional<std::int64_t> {
    return call == DiskCall::kRead && ++reads == 3 ? std::optional<std::int64_t>(-EIO)
                                                   : std::nullopt;
  };
  EXPECT_THROW(run(queue, Direction::kRead, bad, memory), DeviceError);
  others = filled(std::byte{0});
  run(queue, Direction::kRead, good, others);
  EXPECT_TRUE(holds(others, std::byte{9}));
  run(queue, Direction::kRead, bad, memory);
  EXPECT_TRUE(holds(memory, std::byte{7}));
}

TEST_F(DiskQueues, EverybodyWhoWaitsLearnsOfAFailure) {
  DiskQueue queue(file_, trace_, 2, kPage);
  const DiskSlot slot = file_.take(kSlotBytes);
  HostBuffer memory(kSlotBytes);
  calls_.answer = [](DiskCall call, int) -> std::optional<std::int64_t> {
    return call == DiskCall::kRead ? std::optional<std::int64_t>(-EIO) : std::nullopt;
  };
  DiskTransfer transfer;
  fill(transfer, Direction::kRead, slot, memory);
  queue.submit(transfer);
  std::thread other([&] { EXPECT_THROW(queue.wait(transfer), DeviceError); });
  EXPECT_THROW(queue.wait(transfer), DeviceError);
  other.join();
  queue.cancel(transfer);
  calls_.answer = nullptr;
  queue.submit(transfer);
  EXPECT_NO_THROW(queue.wait(transfer));
}

TEST_F(DiskQueues, AfterAFailureTheRestOfATransferIsLeftOut) {
  DiskQueue queue(file_, trace_, 1, kPage);
  const DiskSlot slot = file_.take(kSlotBytes);
  HostBuffer memory = filled(std::byte{7});
  std::atomic<int> writes{0};
  calls_.answer = [&](DiskCall call, int) -> std::optional<std::int64_t> {
    if (call == DiskCall::kWrite) return ++writes == 2 ? -ENOSPC : kPage;
    return std::nullopt;
  };
  EXPECT_THROW(run(queue, Direction::kWrite, slot, memory), OutOfMemoryError);
  EXPECT_EQ(writes, 2);
}

TEST_F(DiskQueues, ACancelledTransferEndsWithWhatIsUnderWay) {
  Gate gate;
  std::atomic<int> reads{0};
  calls_.answer = [&](DiskCall call, int) -> std::optional<std::int64_t> {
    if (call != DiskCall::kRead) return std::nullopt;
    ++reads;
    gate.pass();
    return -EIO;
  };
  DiskQueue queue(file_, trace_, 2, kPage);
  const DiskSlot slot = file_.take(kSlotBytes);
  HostBuffer memory(kSlotBytes);
  DiskTransfer transfer;
  fill(transfer, Direction::kRead, slot, memory);
  queue.submit(transfer);
  gate.wait_for(2);
  std::thread canceller([&] { queue.cancel(transfer); });
  gate.open();
  canceller.join();
  EXPECT_LE(reads, 8);
  calls_.answer = nullptr;
  queue.submit(transfer);  // it can be used again
  EXPECT_NO_THROW(queue.wait(transfer));
}

TEST_F(DiskQueues, CountOnlyWhatSomebodyWaitedFor) {
  DiskQueue queue(file_, trace_, 1);
  const DiskSlot slot = file_.take(kSlotBytes);
  HostBuffer memory = filled(std::byte{1});
  EXPECT_EQ(queue.statistics().hidden_share(), 1.0);
  for (const Direction direction : {Direction::kWrite, Direction::kRead}) {
    Gate gate;
    calls_.answer = [&](DiskCall call, int) -> std::optional<std::int64_t> {
      if (call == DiskCall::kRead || call == DiskCall::kWrite) gate.pass();
      return std::nullopt;
    };
    DiskTransfer transfer;
    fill(transfer, direction, slot, memory);
    queue.submit(transfer);
    gate.wait_for(1);
    const DiskStatistics before = queue.statistics();
    EXPECT_EQ(before.read_wait_s, 0.0);
    EXPECT_EQ(before.hidden_share(), 1.0);
    std::thread waiter([&] { queue.wait(transfer); });
    while (queue.statistics().waits == before.waits) std::this_thread::yield();
    gate.open();
    waiter.join();
    const DiskStatistics after = queue.statistics();
    const bool is_read = direction == Direction::kRead;
    EXPECT_EQ(after.read_wait_s > before.read_wait_s, is_read);
    EXPECT_EQ(after.write_wait_s > before.write_wait_s, !is_read);
    EXPECT_EQ(after.hidden_share() < 1.0, is_read);
    queue.wait(transfer);  // no wait: it has ended
    EXPECT_EQ(queue.statistics().waits, before.waits + 1);
  }
  queue.reset_statistics();
  EXPECT_EQ(queue.statistics().read_bytes, 0);
  EXPECT_EQ(queue.statistics().read_s, 0.0);
  EXPECT_EQ(queue.statistics().write_wait_s, 0.0);
}

TEST_F(DiskQueues, AForkedChildLetsGoOfOne) {
  auto queue = std::make_unique<DiskQueue>(file_, trace_, 2);
  EXPECT_TRUE(holds_in_child([&] {
    queue.reset();
    return true;
  }));
}

TEST_F(DiskQueues, ThatCannotHaveTheirThreadsSaySo) {
  EXPECT_TRUE(holds_in_child([&] {
    if (!forbid_threads()) return false;
    try {
      const DiskQueue queue(file_, trace_, 4);
    } catch (const DeviceError&) {
      return true;
    }
    return false;
  }));
}

TEST_F(DiskQueues, RefuseADepthOfNoneAndPiecesThatAreNoPages) {
  EXPECT_THROW(DiskQueue(file_, trace_, 0), ConfigError);
  EXPECT_THROW(DiskQueue(file_, trace_, 1, 100), ConfigError);
}

}  // namespace
}  // namespace hybridgen
