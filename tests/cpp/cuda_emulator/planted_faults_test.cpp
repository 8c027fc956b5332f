// SPDX-License-Identifier: Apache-2.0
// Each fault that a kernel can have is seen without any sanitizer in the way that docs/cuda.md
// says: by an error, by NaN, or because results differ between orders. (Under ThreadSanitizer the
// races among them are thread_faults_test.cpp's.)
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "emulated_memory.h"
#include "faulty_kernels.h"
#include "support/cuda_emulator/error.h"
#include "support/cuda_emulator/schedule.h"

namespace hybridgen::kernels::test {
namespace {

using cuda_emulator::all_schedules;
using cuda_emulator::KernelError;
using cuda_emulator::Schedule;
using cuda_emulator::ScopedSchedule;
using cuda_emulator::test::DeviceArray;

std::vector<float> one_to(int count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  std::iota(values.begin(), values.end(), 1.0F);
  return values;
}

/// What a kernel writes into `count` elements in each order.
template <typename T, typename Launch>
std::vector<std::vector<T>> results_in_all_orders(std::size_t count, Launch launch_into) {
  std::vector<std::vector<T>> results;
  for (const Schedule& schedule : all_schedules(14)) {
    const ScopedSchedule scoped(schedule);
    DeviceArray<T> out(count);
    launch_into(out.data());
    results.push_back(out.values());
  }
  return results;
}

template <typename T>
bool are_equal(const std::vector<std::vector<T>>& results) {
  return std::set<std::vector<T>>(results.begin(), results.end()).size() == 1;
}

bool is_nan_somewhere(const std::vector<std::vector<float>>& results) {
  for (const std::vector<float>& result : results) {
    for (const float value : result) {
      if (std::isnan(value)) return true;
    }
  }
  return false;
}

/// The message of the KernelError that a launch must throw in every order.
template <typename Launch>
void expect_error(Launch launch_one, const std::string& message) {
  for (const Schedule& schedule : all_schedules(14)) {
    const ScopedSchedule scoped(schedule);
    SCOPED_TRACE(description(schedule));
    try {
      launch_one();
      ADD_FAILURE() << "no error";
    } catch (const KernelError& error) {
      const std::string what = error.what();
      EXPECT_NE(what.find(message), std::string::npos) << what;
      EXPECT_NE(what.find(description(schedule)), std::string::npos) << what;
    }
  }
}

#if !HYBRIDGEN_SANITIZES_THREAD

TEST(PlantedFault, AMissingBarrierGivesNanOrDiffersBetweenOrders) {
  DeviceArray<float> in(one_to(kThreads));
  const auto results_of = [&](auto* kernel, bool has_barrier) {
    return results_in_all_orders<float>(kThreads, [&](float* out) {
      launch(kernel, 1, kThreads, 0, nullptr, in.data(), out, has_barrier);
    });
  };
  EXPECT_TRUE(is_nan_somewhere(results_of(neighbour, false)));
  EXPECT_FALSE(are_equal(results_of(neighbour_in_raw_shared, false)));
  EXPECT_FALSE(are_equal(results_of(shift_in_place, false)));

  EXPECT_TRUE(are_equal(results_of(neighbour, true)));
  EXPECT_TRUE(are_equal(results_of(neighbour_in_raw_shared, true)));
  EXPECT_TRUE(are_equal(results_of(shift_in_place, true)));
}

TEST(PlantedFault, AMissingSyncwarpGivesNan) {
  DeviceArray<float> in(one_to(kLanes));
  const auto results_of = [&](bool has_syncwarp) {
    return results_in_all_orders<float>(1, [&](float* out) {
      launch(warp_sum, 1, kLanes, 0, nullptr, in.data(), out, has_syncwarp);
    });
  };
  EXPECT_TRUE(is_nan_somewhere(results_of(false)));
  EXPECT_EQ(results_of(true), std::vector(6, std::vector{kLanes * (kLanes + 1) / 2.0F}));
}

TEST(PlantedFault, ThreadsThatWriteOneAddressDifferBetweenOrders) {
  EXPECT_FALSE(are_equal(results_in_all_orders<int>(
      1, [](int* out) { launch(all_write_one, 1, kThreads, 0, nullptr, out); })));
}

#endif  // !HYBRIDGEN_SANITIZES_THREAD

TEST(PlantedFault, BlocksThatWriteOneAddressDifferBetweenOrdersOfBlocks) {
  EXPECT_FALSE(are_equal(results_in_all_orders<unsigned>(
      1, [](unsigned* out) { launch(blocks_write_one, 3, kThreads, 0, nullptr, out); })));
}

TEST(PlantedFault, SharedMemoryThatNobodyWroteIsNan) {
  const auto results = results_in_all_orders<float>(
      kThreads, [](float* out) { launch(reads_what_nobody_wrote, 1, kThreads, 0, nullptr, out); });
  for (const std::vector<float>& result : results) {
    for (const float value : result) EXPECT_TRUE(std::isnan(value));
  }
}

TEST(PlantedFault, AnAsynchronousCopyWithoutAWaitIsNan) {
  DeviceArray<float> in(one_to(4 * kThreads));
  const auto results_of = [&](bool waits) {
    return results_in_all_orders<float>(4 * kThreads, [&](float* out) {
      launch(copies_async, 1, kThreads, 0, nullptr, in.data(), out, waits);
    });
  };
  EXPECT_TRUE(is_nan_somewhere(results_of(false)));
  EXPECT_EQ(results_of(true), std::vector(6, one_to(4 * kThreads)));
}

TEST(PlantedFault, ABarrierThatNotAllReachIsADeadlockThatNamesWhoWaitsWhere) {
  DeviceArray<float> out(1);
  expect_error([&] { launch(barrier_beside_a_shuffle, 1, kLanes, 0, nullptr, out.data()); },
               "deadlock: thread 0 waits for the warp in __shfl_sync (faulty_kernels.h:");
  expect_error([&] { launch(barrier_beside_a_shuffle, 1, kLanes, 0, nullptr, out.data()); },
               "; threads 1 to 31 wait at __syncthreads (faulty_kernels.h:");
}

TEST(PlantedFault, TwoBarriersAreNotOne) {
  expect_error([] { launch(two_barriers, 1, kThreads, 0, nullptr); },
               "threads wait at different barriers");
}

TEST(PlantedFault, AShuffleMayNotNameALaneThatHasEnded) {
  DeviceArray<float> out(kLanes);
  expect_error([&] { launch(shuffle_with_an_ended_lane, 1, kLanes, 0, nullptr, out.data()); },
               "__shfl_xor_sync with mask 0xffffffff names lane ");
}

TEST(PlantedFault, AMaskMustNameItsCaller) {
  expect_error([] { launch(mask_without_its_caller, 1, 1, 0, nullptr); },
               "__syncwarp with mask 0xfffffffe does not name its own lane");
}

TEST(PlantedFault, LanesMustGiveTheSameMask) {
  expect_error([] { launch(masks_that_differ, 1, kLanes, 0, nullptr); }, "with mask 0x0000ffff");
}

TEST(PlantedFault, LanesMustBeInTheSameOperation) {
  DeviceArray<int> out(kLanes);
  expect_error([&] { launch(operations_that_differ, 1, kLanes, 0, nullptr, out.data()); },
               "__any_sync with mask 0xffffffff");
}

TEST(PlantedFault, AShuffleMayNotReadALaneOutsideItsMask) {
  DeviceArray<float> out(kLanes);
  expect_error([&] { launch(shuffle_from_outside_the_mask, 1, kLanes, 0, nullptr, out.data()); },
               "__shfl_sync with mask 0x0000ffff reads lane 20, which the mask does not name");
}

TEST(PlantedFault, StaticSharedMemoryBeyondNvccsLimitIsAnError) {
  DeviceArray<float> out(1);
  expect_error([&] { launch(too_much_static_shared, 1, 1, 0, nullptr, out.data()); },
               "static shared memory is more than 48 KiB");
}

TEST(PlantedFault, InstructionsThatNeedAlignmentOrSharedMemoryRefuseOtherAddresses) {
  DeviceArray<float> in(one_to(4 * kThreads));
  DeviceArray<float> out(1);
  DeviceArray<std::uint32_t> registers(kLanes);
  expect_error(
      [&] { launch(copies_async_from_an_odd_place, 1, 1, 0, nullptr, in.data(), out.data()); },
      "cp.async global address is not aligned to 16 bytes");
  expect_error(
      [&] {
        launch(loads_matrices_of_global_memory, 1, kLanes, 0, nullptr, in.data(), registers.data());
      },
      "ldmatrix address is not in a shared array");
}

TEST(PlantedFault, AFaultyLaunchLeavesTheEmulatorUsable) {
  EXPECT_THROW(launch(two_barriers, 1, kThreads, 0, nullptr), KernelError);
  DeviceArray<float> in(one_to(kThreads));
  DeviceArray<float> out(kThreads);
  launch(neighbour, 1, kThreads, 0, nullptr, in.data(), out.data(), true);
  EXPECT_EQ(out.values().front(), 2.0F);
}

}  // namespace
}  // namespace hybridgen::kernels::test
