// SPDX-License-Identifier: Apache-2.0
// What ThreadSanitizer sees of a kernel's races; compiled in its build alone. That it says nothing
// of a right kernel is what the other tests show: a report fails the whole process.
#include <gtest/gtest.h>

#include <cstdlib>
#include <vector>

#include "emulated_memory.h"
#include "faulty_kernels.h"

namespace hybridgen::kernels::test {
namespace {

using cuda_emulator::test::DeviceArray;

// ThreadSanitizer reports when it sees a race and says so again by the exit status.
#define EXPECT_RACE(statement)     \
  EXPECT_EXIT(                     \
      {                            \
        statement;                 \
        std::exit(0);              \
      },                           \
      testing::ExitedWithCode(66), \
      "data race")

TEST(PlantedFaultDeathTest, AMissingBarrierIsARace) {
  DeviceArray<float> in(std::vector<float>(kThreads, 1.0F));
  DeviceArray<float> out(kThreads);
  EXPECT_RACE(launch(neighbour, 1, kThreads, 0, nullptr, in.data(), out.data(), false));
  EXPECT_RACE(
      launch(neighbour_in_raw_shared, 1, kThreads, 0, nullptr, in.data(), out.data(), false));
  EXPECT_RACE(launch(shift_in_place, 1, kThreads, 0, nullptr, in.data(), out.data(), false));

  launch(neighbour, 1, kThreads, 0, nullptr, in.data(), out.data(), true);
  launch(shift_in_place, 1, kThreads, 0, nullptr, in.data(), out.data(), true);
  launch(neighbour_in_raw_shared, 1, kThreads, 0, nullptr, in.data(), out.data(), true);
}

TEST(PlantedFaultDeathTest, AMissingSyncwarpIsARace) {
  DeviceArray<float> in(std::vector<float>(kLanes, 1.0F));
  DeviceArray<float> out(1);
  EXPECT_RACE(launch(warp_sum, 1, kLanes, 0, nullptr, in.data(), out.data(), false));

  launch(warp_sum, 1, kLanes, 0, nullptr, in.data(), out.data(), true);
}

TEST(PlantedFaultDeathTest, ThreadsThatWriteOneAddressRace) {
  DeviceArray<int> out(1);
  EXPECT_RACE(launch(all_write_one, 1, kThreads, 0, nullptr, out.data()));
}

}  // namespace
}  // namespace hybridgen::kernels::test
