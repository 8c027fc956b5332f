// SPDX-License-Identifier: Apache-2.0
// Tests of CUDA kernels run on a device as it likes, and on the emulator in every order.
#pragma once

#include <gtest/gtest.h>

#if HYBRIDGEN_CUDA_EMULATOR
#include <cstdint>
#include <cstdlib>

#include "support/cuda_emulator/schedule.h"
#endif

namespace hybridgen::test {

/// Calls `check` once for each order in which threads and blocks can be run: on a device, once, and
/// under ThreadSanitizer, which sees in one order what none of them guarantees, in the random one.
/// HYBRIDGEN_EMULATOR_SEED=N chooses that; a failure names it.
template <typename Check>
void in_every_order(Check check) {
#if HYBRIDGEN_CUDA_EMULATOR
  using namespace cuda_emulator;
  const char* chosen = std::getenv("HYBRIDGEN_EMULATOR_SEED");
  const std::uint64_t seed = chosen == nullptr ? 14 : std::strtoull(chosen, nullptr, 10);
  for (const Schedule& schedule : all_schedules(seed)) {
    const bool is_random =
        schedule.threads == ThreadOrder::kRandom && schedule.blocks == BlockOrder::kForward;
    if (HYBRIDGEN_SANITIZES_THREAD && !is_random) continue;
    SCOPED_TRACE(description(schedule));
    const ScopedSchedule scoped(schedule);
    check();
    if (testing::Test::HasFatalFailure()) return;
  }
#else
  check();
#endif
}

}  // namespace hybridgen::test
