// SPDX-License-Identifier: Apache-2.0
#include "engine/host_threads.h"

#include <gtest/gtest.h>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

using Cpus = std::vector<int>;

TEST(WorkerCpus, HostWorkersTakeTheLastCoresAndLeaveTheRestToTheDriver) {
  EXPECT_EQ(worker_cpus({0, 1, 2, 3}, {0, 1, 2, 3}, /*threads=*/2, /*helpers=*/0), (Cpus{2, 3}));
}

TEST(WorkerCpus, HelpersOfTheDeviceTakeCoresThatHostWorkersLeave) {
  EXPECT_EQ(worker_cpus({0, 1, 2, 3}, {0, 1, 2, 3}, 2, 1), (Cpus{2, 3, 1}));
  EXPECT_EQ(worker_cpus({0, 1}, {0, 1}, 0, 1), (Cpus{1}));
}

TEST(WorkerCpus, HelpersNeedNotBeOnTheHostWorkersNode) {
  EXPECT_EQ(worker_cpus({0, 1, 2, 3}, {0, 1}, 2, 1), (Cpus{0, 1, 3}));
}

TEST(WorkerCpus, NobodyIsPinnedWhereNoCoreWouldBeLeftForTheDriver) {
  EXPECT_EQ(worker_cpus({0, 1}, {0, 1}, 2, 0), (Cpus{-1, -1}));
  EXPECT_EQ(worker_cpus({0, 1, 2}, {0, 1, 2}, 1, 2), (Cpus{-1, -1, -1}));
}

TEST(WorkerCpus, RefusesMoreHostWorkersThanTheChosenNodeHasCores) {
  EXPECT_THROW(worker_cpus({0, 1, 2, 3}, {0, 1}, 3, 0), ConfigError);
}

}  // namespace
}  // namespace hybridgen
