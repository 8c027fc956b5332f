// SPDX-License-Identifier: Apache-2.0
// The emulated device refuses what a GPU refuses, and shows what a GPU hides.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <gtest/gtest.h>

#include <optional>

#include "device/device_context.h"
#include "support/emulated_cuda.h"
#include "support/order_checker.h"

namespace hybridgen {
namespace {

using emulated::Mode;
using testing::EmulatedCuda;
using testing::OrderChecker;

class EmulatedDevice : public ::testing::TestWithParam<Mode> {};

TEST_P(EmulatedDevice, ComputesWhatTheCpuComputes) {
  const EmulatedCuda device(GetParam());
  const DeviceContext context(device.name());
  const at::Tensor x = at::arange(24, at::kFloat).view({4, 6});
  const at::Tensor there = x.to(context.device());
  EXPECT_TRUE((there.t().matmul(there) * 0.5).cpu().equal(x.t().matmul(x) * 0.5));
  EXPECT_EQ((there > 3.0).sum().item<std::int64_t>(), 20);
}

TEST_P(EmulatedDevice, RunsAStreamsWorkInOrder) {
  const EmulatedCuda device(GetParam());
  const DeviceContext context(device.name());
  at::Tensor x = at::zeros({1}, at::TensorOptions().device(context.device()));
  for (int i = 0; i < 50; ++i) {
    x.mul_(2.0).add_(1.0).remainder_(1000.0);
  }
  at::Tensor expected = at::zeros({1});
  for (int i = 0; i < 50; ++i) {
    expected.mul_(2.0).add_(1.0).remainder_(1000.0);
  }
  EXPECT_EQ(x.item<float>(), expected.item<float>());
}

TEST_P(EmulatedDevice, LetsAStreamWaitForAnother) {
  const EmulatedCuda device(GetParam());
  const DeviceContext context(device.name());
  const auto options = at::TensorOptions().device(context.device());
  std::optional<c10::Event> filled;
  at::Tensor x;
  {
    const auto compute = context.use_compute();
    x = at::ones({1000}, options);
    context.record_compute(filled);
  }
  const auto copy = context.use_copy();
  context.copy_waits(filled);
  EXPECT_EQ(x.sum().item<float>(), 1000.0F);
}

INSTANTIATE_TEST_SUITE_P(
    Modes,
    EmulatedDevice,
    ::testing::Values(Mode::kEager, Mode::kThreads, Mode::kDelays, Mode::kLazy));

TEST(EmulatedDeviceMemory, ThatWasFreedGoesToWhoAsksForSomewhatLess) {
  emulated::DeviceMemory memory(std::size_t{1} << 20);
  void* const first = memory.allocate(100'000, 1).address;
  memory.free(first);
  EXPECT_EQ(memory.allocate(90'000, 1).address, first);
  memory.free(first);
  EXPECT_NE(memory.allocate(90'000, 2).address, first) << "it is another stream's";
  EXPECT_NE(memory.allocate(10'000, 1).address, first) << "most of it would lie idle";
}

TEST(EmulatedDeviceMemory, CannotBeTouchedByTheHost) {
  const EmulatedCuda device;
  const DeviceContext context(device.name());
  const at::Tensor x = at::ones({4}, at::TensorOptions().device(context.device()));
  const volatile float* const address = x.const_data_ptr<float>();
  EXPECT_DEATH(static_cast<void>(*address), "");
}

TEST(EmulatedDeviceMemory, IsOpenToAKernelThatHasItsAddress) {
  EmulatedCuda device;
  const DeviceContext context(device.name());
  const at::Tensor x = at::ones({4}, at::TensorOptions().device(context.device()));
  float* const address = x.mutable_data_ptr<float>();
  device.device().launch(0, "own kernel", [address] { address[2] = 5.0F; });
  EXPECT_EQ(x.sum().item<float>(), 8.0F);
}

TEST(EmulatedDeviceMemory, EndsWhereItsSizeSays) {
  auto options = EmulatedCuda::options(Mode::kEager);
  options.memory_bytes = 1 << 20;
  const EmulatedCuda device(options);
  const DeviceContext context(device.name());
  const auto bytes = at::TensorOptions().dtype(at::kByte).device(context.device());
  const at::Tensor most = at::empty({900 << 10}, bytes);
  EXPECT_EQ(c10::getDeviceAllocator(context.device().type())->getMemoryInfo(0),
            (std::pair<std::size_t, std::size_t>{124 << 10, 1 << 20}));
  EXPECT_THROW(at::empty({200 << 10}, bytes), c10::OutOfMemoryError);
}

TEST(EmulatedDeviceMemory, ThatAStreamKeepsGoesToAnotherBeforeItEnds) {
  auto options = EmulatedCuda::options(Mode::kLazy);
  options.memory_bytes = 1 << 20;
  const EmulatedCuda device(options);
  const DeviceContext context(device.name());
  const auto bytes = at::TensorOptions().dtype(at::kByte).device(context.device());
  static_cast<void>(at::zeros({900 << 10}, bytes));
  const auto compute = context.use_compute();
  EXPECT_EQ(at::ones({800 << 10}, bytes).sum().item<std::int64_t>(), 800 << 10);
}

TEST(EmulatedDeviceMemory, IsNaNUntilSomethingIsWritten) {
  const EmulatedCuda device;
  const DeviceContext context(device.name());
  EXPECT_TRUE(
      at::empty({100}, at::TensorOptions().device(context.device())).isnan().all().item<bool>());
}

TEST(EmulatedDeviceOperators, RefuseTensorsOfTheHost) {
  const EmulatedCuda device;
  const DeviceContext context(device.name());
  const at::Tensor there = at::ones({4}, at::TensorOptions().device(context.device()));
  EXPECT_THROW(there.index_select(0, at::zeros({1}, at::kLong)), c10::Error);
  // A number is not a tensor, and what it was when the operation was queued counts.
  const at::Tensor two = at::ones({}).add_(1.0);
  const at::Tensor product = there * two;
  two.fill_(7.0);
  EXPECT_EQ(product.sum().item<float>(), 8.0F);
}

TEST(EmulatedDeviceOperators, FailWhereTheHostWaits) {
  const EmulatedCuda device(Mode::kThreads);
  const DeviceContext context(device.name());
  const at::Tensor there = at::ones({4}, at::TensorOptions().device(context.device()));
  const at::Tensor wrong = there.index_select(0, there.to(at::kLong) + 10);
  EXPECT_THROW(context.synchronize(), std::exception);
  EXPECT_EQ(there.sum().item<float>(), 4.0F);
}

TEST(EmulatedDeviceCounters, TellCopiesLaunchesAndWaits) {
  EmulatedCuda device;
  const DeviceContext context(device.name());
  device.reset_counters();
  const at::Tensor pinned = context.host_staging({8}, at::kFloat).fill_(3.0);
  at::Tensor there = at::empty({8}, at::TensorOptions().device(context.device()));
  there.copy_(pinned, /*non_blocking=*/true);
  EXPECT_EQ(device.counters().host_waits(), 0);
  there.add_(1.0);
  there.copy_(at::ones({8}), /*non_blocking=*/true);  // not pinned
  EXPECT_EQ(there.sum().item<float>(), 8.0F);
  const emulated::Counters counters = device.counters();
  EXPECT_EQ(counters.copies_to_device, 2);
  EXPECT_EQ(counters.bytes_to_device, 64);
  EXPECT_EQ(counters.launches, 2);  // add_, sum
  EXPECT_EQ(counters.blocking_copies, 1);
  EXPECT_EQ(counters.value_reads, 1);
}

TEST(EmulatedDeviceEvents, KnowTheTimeBetweenThem) {
  const EmulatedCuda device(Mode::kThreads);
  const DeviceContext context(device.name());
  const auto compute = context.use_compute();
  const c10::impl::VirtualGuardImpl guard(context.device().type());
  c10::Event begin(context.device().type(), c10::EventFlag::BACKEND_DEFAULT);
  c10::Event end(context.device().type(), c10::EventFlag::BACKEND_DEFAULT);
  begin.record(guard.getStream(context.device()));
  at::Tensor x = at::ones({200, 200}, at::TensorOptions().device(context.device()));
  x = x.matmul(x);
  end.record(guard.getStream(context.device()));
  end.synchronize();
  EXPECT_GT(begin.elapsedTime(end), 0.0);
}

// Two streams, one tensor.
class TwoStreams : public ::testing::Test {
 protected:
  // The copy stream doubles what the compute stream filled.
  void fill_and_double(bool with_event, const DeviceContext& context, at::Tensor& x) {
    {
      const auto compute = context.use_compute();
      x.fill_(4.0);
      context.record_compute(filled_);
    }
    const auto copy = context.use_copy();
    if (with_event) {
      context.copy_waits(filled_);
    }
    x.mul_(2.0);
    context.record_copy(doubled_);
  }
  std::optional<c10::Event> filled_;
  std::optional<c10::Event> doubled_;
};

TEST_F(TwoStreams, WithoutAnEventBetweenThemAreARace) {
  EmulatedCuda device;
  const DeviceContext context(device.name());
  at::Tensor x = at::empty({8}, at::TensorOptions().device(context.device()));
  OrderChecker checker(device.device());
  fill_and_double(/*with_event=*/false, context, x);
  ASSERT_FALSE(checker.races().empty());
  const std::string& race = checker.races().back();
  EXPECT_NE(race.find("aten::mul writes on stream"), std::string::npos) << race;
  EXPECT_NE(race.find("what aten::fill_ writes"), std::string::npos) << race;
}

TEST_F(TwoStreams, WithAnEventBetweenThemAreInOrder) {
  EmulatedCuda device;
  const DeviceContext context(device.name());
  at::Tensor x = at::empty({8}, at::TensorOptions().device(context.device()));
  OrderChecker checker(device.device());
  fill_and_double(/*with_event=*/true, context, x);
  DeviceContext::host_waits(doubled_);
  EXPECT_EQ(x.sum().item<float>(), 64.0F);  // on a third stream, after the host has waited
  EXPECT_EQ(checker.races(), std::vector<std::string>{});
}

TEST_F(TwoStreams, OnDifferentRowsOfATensorAreNoRace) {
  EmulatedCuda device;
  const DeviceContext context(device.name());
  const at::Tensor x = at::empty({2, 6, 4}, at::TensorOptions().device(context.device()));
  OrderChecker checker(device.device());
  {
    const auto compute = context.use_compute();
    x.narrow(1, 0, 3).fill_(1.0);
  }
  const auto copy = context.use_copy();
  x.narrow(1, 3, 3).fill_(2.0);
  EXPECT_EQ(checker.races(), std::vector<std::string>{});
  x.narrow(1, 2, 2).fill_(2.0);
  EXPECT_FALSE(checker.races().empty());
}

// A block is freed while another stream still reads it.
TEST(FreedInFlight, IsSeenByTheOrderChecker) {
  for (const bool waits : {true, false}) {
    EmulatedCuda device;
    OrderChecker checker(device.device());
    const DeviceContext context(device.name());
    const auto options = at::TensorOptions().device(context.device());
    std::optional<c10::Event> filled;
    std::optional<c10::Event> read;
    const auto compute = context.use_compute();
    at::Tensor block = at::ones({1 << 10}, options);
    context.record_compute(filled);
    at::Tensor sum;
    {
      const auto copy = context.use_copy();
      context.copy_waits(filled);
      sum = block.sum();
      context.record_copy(read);
    }
    if (waits) {
      context.compute_waits(read);
    }
    block.reset();
    EXPECT_EQ(checker.races().empty(), waits);
    if (!waits) {
      EXPECT_NE(checker.races().front().find("free writes"), std::string::npos);
    }
  }
}

TEST(FreedInFlight, GivesNaNWhereWorkIsLate) {
  for (const bool waits : {true, false}) {
    const EmulatedCuda device(Mode::kLazy);
    const DeviceContext context(device.name());
    const auto options = at::TensorOptions().device(context.device());
    std::optional<c10::Event> filled;
    std::optional<c10::Event> read;
    std::optional<c10::Event> freed;
    at::Tensor sum;
    {
      const auto compute = context.use_compute();
      at::Tensor block = at::ones({1 << 10}, options);
      context.record_compute(filled);
      {
        const auto copy = context.use_copy();
        context.copy_waits(filled);
        sum = block.sum();
        context.record_copy(read);
      }
      if (waits) {
        context.compute_waits(read);
      }
      block.reset();
      context.record_compute(freed);
    }
    DeviceContext::host_waits(freed);
    const auto copy = context.use_copy();
    EXPECT_EQ(sum.item<float>() == 1024.0F, waits);
  }
}

}  // namespace
}  // namespace hybridgen
