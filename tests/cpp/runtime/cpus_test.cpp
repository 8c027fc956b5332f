// SPDX-License-Identifier: Apache-2.0
#include "runtime/cpus.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

TEST(AvailableCpus, AreAscendingAndBoundTheParallelism) {
  const std::vector<int> cpus = available_cpus();
  ASSERT_FALSE(cpus.empty());
  EXPECT_TRUE(std::is_sorted(cpus.begin(), cpus.end()));
  EXPECT_GE(available_parallelism(), 1);
  EXPECT_LE(available_parallelism(), static_cast<int>(cpus.size()));
}

TEST(PinCurrentThread, RestrictsTheCallerAlone) {
  const std::vector<int> before = available_cpus();
  std::vector<int> inside;
  std::thread([&] {
    pin_current_thread({before.front()});
    inside = available_cpus();
  }).join();
  EXPECT_EQ(inside, std::vector<int>{before.front()});
  EXPECT_EQ(available_cpus(), before);
}

TEST(PinCurrentThread, RefusesCpusThatAreNotThereWithTheSystemsText) {
  for (const std::vector<int>& cpus : {std::vector<int>{}, {-1}, {100000}}) {
    try {
      pin_current_thread(cpus);
      ADD_FAILURE() << "pinned to nothing that exists";
    } catch (const DeviceError& error) {
      EXPECT_NE(std::string(error.what()).find("Invalid argument"), std::string::npos)
          << error.what();
    }
  }
}

TEST(OpenmpBindsThreads, NeverInAProgramWithoutOpenmp) { EXPECT_FALSE(openmp_binds_threads()); }

}  // namespace
}  // namespace hybridgen
