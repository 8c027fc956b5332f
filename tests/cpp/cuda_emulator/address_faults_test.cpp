// SPDX-License-Identifier: Apache-2.0
// What AddressSanitizer and UndefinedBehaviorSanitizer see of a kernel's memory; compiled in their
// build alone.
#include <gtest/gtest.h>

#include <vector>

#include "emulated_memory.h"
#include "faulty_kernels.h"

namespace hybridgen::kernels::test {
namespace {

using cuda_emulator::test::DeviceArray;

constexpr std::size_t kSharedBytes = kThreads * sizeof(float);

TEST(PlantedFaultDeathTest, AnOverrunOfASharedArrayIsUseOfPoisonedMemory) {
  DeviceArray<float> out(kThreads);
  EXPECT_DEATH(launch(overruns_shared, 1, kThreads, 0, nullptr, out.data(), 1), "use-after-poison");
  EXPECT_DEATH(launch(overruns_dynamic_shared, 1, kThreads, kSharedBytes, nullptr, out.data(), 1),
               "use-after-poison");

  launch(overruns_shared, 1, kThreads, 0, nullptr, out.data(), 0);
  launch(overruns_dynamic_shared, 1, kThreads, kSharedBytes, nullptr, out.data(), 0);
  EXPECT_EQ(out.values(), std::vector<float>(kThreads, 1.0F));
}

TEST(PlantedFaultDeathTest, AnOverrunOfARawSharedArrayIsAnIndexOutOfBounds) {
  DeviceArray<float> out(kThreads);
  EXPECT_DEATH(launch(overruns_raw_shared, 1, kThreads, 0, nullptr, out.data(), 1),
               "out of bounds for type 'float *\\[64\\]'");
  launch(overruns_raw_shared, 1, kThreads, 0, nullptr, out.data(), 0);
}

TEST(PlantedFaultDeathTest, AnOverrunOfGlobalMemoryIsAHeapOverflow) {
  DeviceArray<float> out(kThreads);
  EXPECT_DEATH(launch(overruns_global, 1, kThreads, 0, nullptr, out.data(), 1),
               "heap-buffer-overflow");
  launch(overruns_global, 1, kThreads, 0, nullptr, out.data(), 0);
}

TEST(PlantedFaultDeathTest, AVectorLoadFromAnOddPlaceIsMisaligned) {
  DeviceArray<float> in(std::vector<float>(8, 1.0F));
  DeviceArray<float> out(1);
  EXPECT_DEATH(launch(loads_four, 1, 1, 0, nullptr, in.data() + 1, out.data()),
               "misaligned address");
  launch(loads_four, 1, 1, 0, nullptr, in.data(), out.data());
}

}  // namespace
}  // namespace hybridgen::kernels::test
